"""Which models can be grown: wrapped, grown, exported, resumed and grown again, by the library as its users have it.

    uv sync --group compat
    uv run python benchmarks/compatibility.py --into docs/compatibility.md
    uv run python benchmarks/compatibility.py --only "GRU, last state" --only GCN

A cell is passed, or refused with the sentence that a user is told, or failed. One run on each model, in a loop of its
user's own (``Grower``) on random numbers: a seed germinates, learns behind the host, is blended in and is kept, each by
the gates as they are, asked for less than by default (``GATES``), so that a dozen epochs of three small batches are
enough. What a seed is worth is not looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compatibility_models import PACKAGES, Model
from torch import Tensor, nn

from esper import Budget, EnvPolicy, EsperError, Grower, OwnChoices
from esper.kasmina.replay import same
from esper.kasmina.structure import mapped, tensors
from esper.leyline import WAIT, Blend, Decision, EnvView, FactoredAction, GateThresholds, Op, SeedStage
from esper.tamiyo.policies.evidence import bring_through
from esper.tolaria.legality import legal_blueprints, legal_slots

EPOCHS = 30
BATCHES = 3
GATES = GateThresholds(
    min_training_epochs=1, min_gradient_ratio=1e-4, min_gradient_health=0.0, min_holding_epochs=1, confidence_z=0.0
)
PASSED = "passed"
COLUMNS = ("wrapped", "grown", "exported", "resumed", "grown again")
TOLERANCE = 1e-4


class Refused(Exception):
    """What a user is told."""


class OneSeed(EnvPolicy):
    """Grows one seed, the smallest that there is, in the last slot that takes one, and brings it through its gates."""

    name = "one-seed"

    def decide_env(self, env: int, view: EnvView) -> Decision:
        for slot in view.slots:
            decision = bring_through(view, slot)
            if decision is not None:
                return decision
        free = [] if view.live_seeds else legal_slots(view, Op.GERMINATE)
        for name in reversed(free):
            sizes = view.blueprint_parameters[name]
            blueprint = min(legal_blueprints(view, name), key=lambda each: (each not in _LIKED, sizes[each]))
            return Decision(FactoredAction(Op.GERMINATE, name, blueprint, Blend.LINEAR, 1.0, 2), "first that fits")
        return Decision(WAIT, "one is enough")


_LIKED = ("pointwise", "bottleneck")


def loss_of(output: Any, targets: Tensor) -> Tensor:
    """How far a mixture of the first tensor of the output is from the targets."""
    said = next(tensor for _, tensor in tensors(output) if tensor.is_floating_point())
    rows = said.float().reshape(len(targets), -1) if len(said) == len(targets) else said.float().reshape(1, -1)
    signs = torch.arange(rows.shape[1], device=rows.device).remainder(3).float() - 1.0
    loss: Tensor = ((rows @ signs) / rows.shape[1] ** 0.5 - targets[: len(rows)]).square().mean()
    return loss


@dataclass
class Bench:
    """One model on its way through the columns."""

    model: Model
    folder: Path
    cells: dict[str, str] = field(default_factory=dict)
    """Column -> ``passed``, or what was said against it."""
    built: nn.Module | None = None
    runs: int = 0
    """Begun so far."""

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.model.build()

    def batches(self) -> list[tuple[Any, Tensor]]:
        """The batches of the present run: each has targets of its own."""
        found = []
        for number in range(BATCHES):
            torch.manual_seed(100 * self.runs + number)
            inputs = self.model.inputs()
            examples = next(len(tensor) for _, tensor in tensors(inputs))
            found.append((inputs, torch.randn(examples)))
        return found

    def call(self, model: nn.Module, inputs: Any) -> Any:
        return model(inputs) if self.model.forward is None else self.model.forward(model, inputs)

    def said(self, model: nn.Module) -> Any:
        """The model's outputs in evaluation mode."""
        was = {module: module.training for module in model.modules()}
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            outputs = [mapped(self.call(model, inputs), torch.clone) for inputs, _ in self.batches()]
        for module, mode in was.items():
            module.training = mode
        return outputs

    def grower(self, model: nn.Module, name: str) -> tuple[Grower, torch.optim.Optimizer]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        budget = Budget(epochs=EPOCHS, parameters=10**8, seed_lr_multiplier=100.0, gates=GATES)
        options: dict[str, Any] = {} if self.model.forward is None else {"forward": self.model.forward}
        choices = OwnChoices(loss=loss_of, metric="loss", at=self.model.at, budget=budget, device="cpu", **options)
        grower = Grower(
            model, optimizer, val=self.batches(), choices=choices, policy=OneSeed(), run_dir=self.folder / name
        )
        return grower, optimizer

    def epoch(self, model: nn.Module, grower: Grower, optimizer: torch.optim.Optimizer) -> EnvView:
        model.train()
        for inputs, targets in self.batches():
            optimizer.zero_grad()
            torch.autograd.backward(grower.loss(inputs, targets))
            grower.after_backward()
            optimizer.step()
        return grower.after_epoch().view

    def grow(self, model: nn.Module, name: str) -> Grower:
        """A whole run; the seed must be kept."""
        self.runs += 1
        grower, optimizer = self.grower(model, name)
        torch.manual_seed(1)
        with grower:
            for _ in range(EPOCHS):
                view = self.epoch(model, grower, optimizer)
                if any(slot.stage is SeedStage.FOSSILIZED for slot in view.slots):
                    break
            else:
                slots = [f"{slot.slot_id} {slot.stage.name} {','.join(slot.blocked_by)}" for slot in view.slots]
                raise AssertionError(f"no seed was kept: {'; '.join(slots)}")
        return grower

    # --- the columns ----------------------------------------------------------------------------------------------

    def wrapped(self) -> None:
        model = self.make()
        bare = self.said(model)
        grower, _ = self.grower(model, "wrapped")
        with grower:
            assert same(self.said(model), bare), "outputs differ"
            self.sites = [slot.slot_id for slot in grower.view.slots]
            self.epoch(model, grower, _)

    def grown(self) -> None:
        self.built = self.make()
        self.result = self.grow(self.built, "grown").result

    def exported(self) -> None:
        expected = self.said(self.result.model)
        path = self.result.run_dir / "model" / "model.py"
        spec = importlib.util.spec_from_file_location("exported", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        needs_host = "needs a" in path.read_text(encoding="utf-8")
        found = self.said(module.load(lambda: self.make(7)) if needs_host else module.load())
        assert close(found, expected), "outputs differ"

    def resumed(self) -> None:
        raise NotImplementedError

    def grown_again(self) -> None:
        again = self.grow(self.result.model, "again").result
        assert sum(p.numel() for p in again.model.parameters()) > sum(p.numel() for p in self.result.model.parameters())

    def run(self) -> None:
        """Fill the cells; what comes after one that did not pass stays open."""
        for column in COLUMNS:
            try:
                getattr(self, column.replace(" ", "_"))()
            except NotImplementedError:
                continue
            except EsperError as error:
                self.cells[column] = f"refused: {error}"
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.cells[column] = (
                    f"FAILED: {type(error).__name__}: {str(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
                )
            else:
                self.cells[column] = PASSED
                continue
            if column in ("wrapped", "grown"):
                return


def close(one: Any, other: Any) -> bool:
    """Whether outputs are the same but for rounding."""
    left, right = dict(tensors(one)), dict(tensors(other))
    return left.keys() == right.keys() and all(
        torch.allclose(left[path].to(torch.complex128), right[path].to(torch.complex128), TOLERANCE, TOLERANCE)
        if left[path].is_complex()
        else torch.allclose(left[path].double(), right[path].double(), TOLERANCE, TOLERANCE)
        for path in left
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="of these models alone")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the table into this page")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    for package, models in PACKAGES.items():
        for name, model in models.items():
            if options.only and name not in options.only and package not in options.only:
                continue
            began = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="compatibility-") as folder:
                bench = Bench(model, Path(folder))
                bench.run()
            print(f"{package:28} {name:36} {time.perf_counter() - began:5.1f} s  {bench.cells}", flush=True)


if __name__ == "__main__":
    main()
