"""What seeds cost at validation and while they learn behind the host: CPU time over that of the host alone.

    uv run python benchmarks/validation.py [resnet18 vit gpt]

Medians of paired ratios, one thread. Validation: what the executor evaluates of four seeds, in each state of theirs,
over one pass of the same host over the same batches, and its work in passes. Learning: an epoch of training with one
seed behind the host, half-way through it, over the same epoch of the host alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import timm
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from esper.leyline import EnvSpec, FactoredAction, Op, Paired, SeedStage
from esper.leyline.actions import Blend
from esper.library import Budget, OwnChoices
from esper.run.own import OwnModel
from esper.tasks.loader import LoaderBatches
from esper.tolaria.counterfactual import Need, plan
from esper.tolaria.engine import ModuleEngine

PAIRS = 5
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Host:
    """A network, where it grows, and random batches for it."""

    model: nn.Module
    sites: list[str]
    blueprint: str
    training: Batches
    validation: Batches


class Words(nn.Module):
    """Logits ``[N, words, T]`` of the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=4, n_head=4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt(ids).logits.transpose(1, 2)


def hosts() -> dict[str, Callable[[], Host]]:
    """By name."""

    def pictures(model: nn.Module, sites: list[str], blueprint: str) -> Host:
        def batch(n: int) -> tuple[Tensor, Tensor]:
            return torch.randn(n, 3, 32, 32), torch.randint(0, 10, (n,))

        return Host(model, sites, blueprint, [batch(16) for _ in range(6)], [batch(16) for _ in range(16)])

    def words() -> Host:
        def batch(n: int) -> tuple[Tensor, Tensor]:
            return torch.randint(0, 256, (n, 64)), torch.randint(0, 256, (n, 64))

        sites = [f"gpt.transformer.h.{i}.mlp" for i in range(4)]
        return Host(Words(), sites, "mlp", [batch(8) for _ in range(6)], [batch(16) for _ in range(16)])

    stages = [f"layer{i}.1" for i in range(1, 5)]
    small = {"img_size": 32, "patch_size": 4, "num_classes": 10}
    return {
        "resnet18": lambda: pictures(timm.create_model("resnet18", num_classes=10), stages, "conv3"),
        "vit": lambda: pictures(
            timm.create_model("vit_tiny_patch16_224", **small), [f"blocks.{i}" for i in (2, 5, 8, 11)], "mlp"
        ),
        "gpt": words,
    }


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of ``run``."""
    before = time.process_time()
    run()
    return time.process_time() - before


def ratio(one: Callable[[], object], other: Callable[[], object]) -> str:
    """Median of paired ratios, with the range."""
    one(), other()
    found = [cpu(one) / cpu(other) for _ in range(PAIRS)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def bare_validation(host: Host) -> None:
    """One pass over validation, by hand."""
    host.model.eval()
    with torch.no_grad():
        for inputs, targets in host.validation:
            output = host.model(inputs)
            nn.functional.cross_entropy(output, targets, reduction="none")
            (output.argmax(1) == targets).float().mean()


def bare_epoch(host: Host, optimizer: torch.optim.Optimizer) -> None:
    """One epoch of training, by hand."""
    host.model.train()
    for inputs, targets in host.training:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(host.model(inputs), targets).backward()
        optimizer.step()


def engine_of(host: Host) -> ModuleEngine:
    """The engine of a fresh run, its only env begun."""
    budget = Budget(epochs=1000, max_seeds=9, parameters=10**9, blueprints=(host.blueprint,))
    choices = OwnChoices(loss=nn.CrossEntropyLoss(), at=host.sites, budget=budget, device="cpu")
    optimizer = torch.optim.AdamW(host.model.parameters(), 1e-4)
    own = OwnModel.of(host.model, {"validation": host.validation}, choices, optimizer)
    batches = LoaderBatches(host.training, device="cpu", unpacking=choices.unpacking)
    own = replace(own, setup=replace(own.setup, batches=batches))
    executor = own.executor(lambda event: None)
    executor.reset([EnvSpec(0, 0, 0, 1000)])
    assert isinstance(executor.engine, ModuleEngine)
    return executor.engine


def grow(engine: ModuleEngine, slots: list[str], blueprint: str, *, noise: float) -> None:
    """Let a seed germinate in each slot, and disturb its weights."""
    for slot in slots:
        (outcome,) = engine.apply([0], [FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, 1.0, 1)])
        assert outcome.success, outcome
        found = engine.trainer(0).model.slots[slot]
        found.advance_stage(SeedStage.TRAINING)
        with torch.no_grad():
            for parameter in found.seed_parameters():
                parameter.add_(noise * torch.randn_like(parameter))


STATES = {
    "blended in by less than half": (SeedStage.BLENDING, 0.4, 0),
    "blended in, too early for the gate": (SeedStage.HOLDING, 1.0, 0),
    "held, of clear worth or harm": (SeedStage.HOLDING, 1.0, 1),
    "held, never clear (the worst case)": (SeedStage.HOLDING, 1.0, 1),
    "kept": (SeedStage.FOSSILIZED, 1.0, 1),
}


def validation(name: str) -> None:
    """Rows of four seeds."""
    host = hosts()[name]()
    engine = engine_of(host)
    model = engine.trainer(0).model
    alone = lambda: bare_validation(host)  # noqa: E731
    print(f"| {name}: no seed | {ratio(lambda: engine.evaluate([0], [({},)]), alone)} | 1.00 |", flush=True)
    grow(engine, list(model.slots), host.blueprint, noise=0.5)
    for state, (stage, alpha, epochs) in STATES.items():
        for slot in model.slots.values():
            assert slot.state is not None
            slot.state.stage, slot.state.alpha, slot.state.epochs_in_stage = stage, alpha, epochs
        view = engine.views([0])[0]
        asked = plan(view, Need(oldest=3))

        def settled(env: int, number: int, metric: Paired, loss: Paired) -> bool:
            if "never" in state:  # noqa: B023
                return False
            return asked.settled(number, metric, loss, engine.task.metric, view.gates)  # noqa: B023

        evaluated = lambda: engine.evaluate([0], [asked.configs], settled=settled)  # noqa: B023, E731
        # what the seeds themselves cost is the network's: they are in the pass that it is compared with
        with_seeds = lambda: engine.evaluate([0], [({},)])  # noqa: E731
        passes = float(evaluated().passes[0])
        print(f"| {name}: four seeds {state} | {ratio(evaluated, with_seeds)} | {passes:.2f} |", flush=True)


def learning(name: str) -> None:
    """Rows of one seed behind the host."""
    host, other = hosts()[name](), hosts()[name]()
    engine = engine_of(host)
    optimizer = torch.optim.AdamW(other.model.parameters(), 1e-4)
    grow(engine, list(engine.trainer(0).model.slots)[1:2], host.blueprint, noise=0.0)
    found = ratio(lambda: engine.train_epoch([0]), lambda: bare_epoch(other, optimizer))
    print(f"| {name}: an epoch with one seed behind the host | {found} | |", flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| CPU time over the host's alone | median (range) | passes by MACs |\n|---|---|--:|")
    for name in sys.argv[1:] or list(hosts()):
        validation(name)
        learning(name)


if __name__ == "__main__":
    main()
