"""A small training run, made by a plain loop with ``Grower`` and by a stack: what its optimizer saw must agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from esper.leyline import Blend, Decision, EnvSpec, EnvView, FactoredAction, GateThresholds, Op, SeedStage
from esper.library import Budget, Grower, OwnChoices
from own_loop import LOSS, narrow, products

TRAIN = [products(16, seed) for seed in range(4)]
VALIDATION = [products(16, 50 + seed) for seed in range(8)]
EPOCHS = 4
FREE = GateThresholds(min_training_epochs=0, min_gradient_ratio=0.0, min_gradient_health=0.0, ask_for_gain=False)


class Killed(Exception):
    """Stands for the end of a process that nobody can prepare for."""


class Script:
    """Germinates a seed after the first epoch and blends it in after the third."""

    name = "script"

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,), (slot, *_) = views, views[0].slots
        action = FactoredAction()
        if view.epoch == 1 and slot.stage is SeedStage.DORMANT:
            action = FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, 1.0, 1)
        elif view.epoch == 3 and slot.stage is SeedStage.TRAINING:
            action = FactoredAction(Op.ADVANCE, slot.slot_id)
        return [Decision(action, "as it is written")]


def budget(**others: Any) -> Budget:
    return Budget(epochs=EPOCHS, parameters=10**6, gates=FREE, **others)


def choices(at: str, loss: Any = LOSS) -> OwnChoices:
    return OwnChoices(loss=loss, metric="loss", at={"site": at}, budget=budget(), device="cpu")


def optimizer_of(module: nn.Module) -> SGD:
    return SGD(module.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)


def warm_up(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6))


@dataclass
class Told:
    """What the optimizer saw at each of its steps, parameter by parameter, seeds last."""

    gradients: list[list[Tensor | None]] = field(default_factory=list)
    weights: list[list[Tensor]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)

    def watch(self, optimizer: Optimizer) -> None:
        optimizer.register_step_post_hook(self._note)

    def _note(self, optimizer: Optimizer, *arguments: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in held])
        self.weights.append([p.detach().clone() for p in held])
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])

    def seeds_learnt(self) -> bool:
        """Whether some seed had a gradient, and not only the host."""
        few = len(self.gradients[0])
        return any(g is not None and bool(g.any()) for step in self.gradients for g in step[few:])


def assert_equal(one: Told, other: Told, **near: float) -> None:
    """Bit for bit, or ``near`` where sums are in another order."""
    near = near or {"rtol": 0.0, "atol": 0.0}
    assert len(one.gradients) == len(other.gradients) and one.seeds_learnt() and other.seeds_learnt()
    for name in ("gradients", "weights", "rates"):
        assert_all_equal(getattr(one, name), getattr(other, name), **near)


def assert_all_equal(one: list[Any], other: list[Any], **near: float) -> None:
    """Step by step."""
    near = near or {"rtol": 0.0, "atol": 0.0}
    for step, (left, right) in enumerate(zip(one, other, strict=True)):
        torch.testing.assert_close(left, right, **near, msg=f"step {step}: {{}}".format)


@dataclass(frozen=True)
class Way:
    """How a run is made."""

    micro: int = 1
    clip: float | None = None
    bf16: bool = False
    scheduled: bool = False
    rounds: int = 0
    """Batches after which is validated in mid-epoch; 0 is at its end alone."""

    def cast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()


def plain(
    where: Path,
    way: Way,
    model: nn.Module | None = None,
    *,
    batches: list[Any] = TRAIN,
    epochs: int = EPOCHS,
    schedule: Callable[[Optimizer], LambdaLR] | None = None,
    optimizer: Callable[[nn.Module], Optimizer] = optimizer_of,
    loss: Callable[[Grower, Any], Tensor] = lambda grower, batch: grower.loss(*batch),
    **grower: Any,
) -> Told:
    """By a loop of one's own, as the docstring of :class:`Grower` has it."""
    model, told = model or narrow(), Told()
    own_optimizer = optimizer(model)
    made = warm_up if way.scheduled else schedule
    scheduler = None if made is None else made(own_optimizer)
    told.watch(own_optimizer)
    own = replace(choices("1"), precision="bf16-mixed" if way.bf16 else None)
    if way.rounds:
        own = replace(own, budget=replace(own.budget, epochs=EPOCHS * len(batches) // way.rounds))
    options = {"val": VALIDATION, "choices": own, "policy": Script(), "run_dir": where / "plain"} | grower
    with Grower(model, own_optimizer, **options) as growing:
        for _ in range(epochs):
            model.train()
            for number, batch in enumerate(batches):
                if number and way.rounds and number % way.rounds == 0:
                    growing.after_epoch()
                with way.cast():
                    taken = loss(growing, batch)
                torch.autograd.backward(taken / way.micro)
                growing.after_backward()
                if (number + 1) % way.micro:
                    continue
                if way.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), way.clip)
                own_optimizer.step()
                own_optimizer.zero_grad()
                if scheduler is not None:
                    scheduler.step()
            growing.after_epoch()
    return told


def quick(stacks: Mapping[str, Any], *names: str) -> list[Any]:
    """All of them as parameters of a test; those that are not named run with what is slow."""
    assert set(names) <= set(stacks)
    return [
        pytest.param(stack, id=name, marks=() if name in names else pytest.mark.slow) for name, stack in stacks.items()
    ]


def as_launched(ranks: int) -> None:
    """In a fresh fork: be what ``torchrun`` and ``accelerate launch --cpu`` start, besides what ``on_ranks`` says."""
    from accelerate.state import AcceleratorState, GradientState

    os.environ |= {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": str(ranks), "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(True)  # of the process that was forked
    GradientState._reset_state()


class Stack(Protocol):
    """A way to train under a framework, beside a plain loop that does the same."""

    @property
    def way(self) -> Way:
        """How."""

    def plain(self, where: Path) -> Told:
        """The plain loop."""

    def whole(self, where: Path) -> Told:
        """The stack, uninterrupted."""

    def cut(self, where: Path) -> tuple[Path, int]:
        """Train until killed; the newest checkpoint, and the steps of the optimizer that it has seen."""

    def resumed(self, where: Path, checkpoint: Path) -> Told:
        """From a fresh model on from the checkpoint."""

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Weights and optimizer as the checkpoint has them, and whether seeds are in it."""

    def fresh(self) -> tuple[nn.Module, Optimizer]:
        """A model and its optimizer, as they were before anything grew."""


def check_gradients(stack: Stack, where: Path) -> None:
    """Gradients, weights and rates are those of a plain loop, seeds' and host's, bit for bit."""
    assert_equal(stack.whole(where / "stack"), stack.plain(where / "plain"), **getattr(stack, "near", {}))


def check_checkpoint(stack: Stack, where: Path) -> None:
    """What the framework wrote loads where there is no Esper, strictly, and seeds stand beside it."""
    checkpoint, done = stack.cut(where / "cut")
    weights, optimizer, seeds = stack.read(checkpoint)
    model, fresh = stack.fresh()
    model.load_state_dict(weights)
    fresh.load_state_dict(optimizer)
    assert seeds and done * stack.way.micro > len(TRAIN), "a seed was alive"


def check_resume(stack: Stack, where: Path) -> None:
    """A run that was killed and goes on from its checkpoint is the uninterrupted one, bit for bit."""
    whole = stack.whole(where / "whole")
    checkpoint, done = stack.cut(where / "cut")
    rest = stack.resumed(where / "cut", checkpoint)
    for name in ("gradients", "weights", "rates"):
        assert_all_equal(getattr(rest, name), getattr(whole, name)[done:])
