"""Which models can be grown: wrapped, grown, exported, resumed and grown again, by the library as its users have it.

    uv sync --group compat
    uv run python benchmarks/compatibility.py --run models.jsonl --into docs/compatibility.md
    uv run python benchmarks/compatibility.py --only "GRU, last state" --only torch_geometric

A cell is passed, or refused with the sentence that a user is told, or failed, which is a bug. Each model has two runs,
in a loop of its user's own (``Grower``), on random numbers: a seed germinates, learns behind the host, is blended
in and is kept. The gates are the real ones, asked for less than by default (``GATES``), so that some epochs of three
small batches are enough. Whether a seed is worth anything is not looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compatibility_models import PACKAGES, Model
from torch import Tensor, nn

from esper import Budget, EnvPolicy, EsperError, Grower, GrowResult, OwnChoices
from esper.bench.report import into_page
from esper.kasmina.structure import mapped, same, tensors
from esper.leyline import WAIT, Blend, Decision, EnvView, FactoredAction, GateThresholds, Op, SeedStage
from esper.tamiyo.policies.evidence import bring_through
from esper.tolaria.legality import legal_blueprints, legal_slots

EPOCHS = 40
GATES = GateThresholds(
    min_training_epochs=1,
    min_gradient_ratio=1e-4,
    min_gradient_health=0.0,
    min_holding_epochs=1,
    confidence_z=0.0,
    blending_z=0.0,
)
RATE, MULTIPLE = 1e-5, 100.0
"""Learning rate of the host, and that of a seed over it: the seed learns, the host hardly moves."""
TOLERANCE = 1e-4
"""Of outputs of an exported model, absolute and relative: deep networks round otherwise where layers are folded."""
PASSED = "passed"
COLUMNS = ("wrapped", "grown", "exported", "resumed", "grown again")
EXPLAINED = {
    "wrapped": "outputs inside the block are those before it, bit for bit",
    "grown": "a seed went through every gate, and was kept",
    "exported": "what `model.py` loads, without Esper, says the same",
    "resumed": "saved while a seed was blended in, a fresh model goes on and ends with the same bits",
    "grown again": "the grown model is grown once more",
}


class OneSeed(EnvPolicy):
    """Grows one seed, in the last slot that takes one, and brings it through its gates."""

    name = "one-seed"

    def decide_env(self, env: int, view: EnvView) -> Decision:
        for slot in view.slots:
            decision = bring_through(view, slot)
            if decision is not None:
                return decision
        free = [] if view.live_seeds else legal_slots(view, Op.GERMINATE)
        for name in reversed(free):
            sizes = view.blueprint_parameters[name]
            choice = min(legal_blueprints(view, name), key=lambda each: (each != "pointwise", sizes[each]))
            return Decision(FactoredAction(Op.GERMINATE, name, choice, Blend.LINEAR, 1.0, 2), "the last that is free")
        return Decision(WAIT, "one is enough")


def loss_of(output: Any, targets: Tensor) -> Tensor:
    """How far a mixture of the first tensor of the output is from the targets."""
    said = next(tensor for _, tensor in tensors(output) if tensor.is_floating_point())
    rows = said.float().reshape(len(targets), -1)
    signs = torch.arange(rows.shape[1], device=rows.device).remainder(3).float() - 1.0
    loss: Tensor = (rows @ signs / rows.shape[1] ** 0.5 - targets).square().mean()
    return loss


@dataclass
class Course:
    """What one run left: its result, its state in the midst of blending, and the slots that there were."""

    result: GrowResult
    midway: bytes
    slots: tuple[str, ...]


@dataclass
class Trial:
    """One model on its way through the columns."""

    model: Model
    folder: Path
    cells: dict[str, str] = field(default_factory=dict)
    """Column -> ``passed``, or what was said against it."""
    course: Course | None = None
    bare: Any = None
    """Outputs of the model as it comes."""
    equal: bool = False
    """Whether they are the same inside the block."""
    trouble: Exception | None = None
    """What broke the run off."""

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.model.build()
        if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
            self.said(model)  # else its first pass would draw its weights, whichever that is
        return model

    def batches(self, run: int) -> list[tuple[Any, Tensor]]:
        """Each run has targets of its own: what was learnt once cannot be learnt again."""
        found = []
        with torch.random.fork_rng():
            for number in range(self.model.batches):
                torch.manual_seed(100 + number)
                inputs = self.model.inputs()
                examples = self.model.examples(inputs)
                torch.manual_seed(100 * (run + 2) + number)
                found.append((inputs, 2.0 * torch.randn(examples)))
        return found

    def said(self, model: nn.Module) -> Any:
        """The model's outputs in evaluation mode."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        call = self.model.forward or plain
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            outputs = [mapped(call(model, inputs), torch.clone) for inputs, _ in self.batches(0)]
        for module, mode in modes.items():
            module.training = mode
        return outputs

    def grower(self, model: nn.Module, run: int, where: Path | None) -> tuple[Grower, torch.optim.Optimizer]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        budget = Budget(epochs=EPOCHS, parameters=10**8, seed_lr_multiplier=MULTIPLE, gates=GATES)
        options: dict[str, Any] = {} if self.model.forward is None else {"forward": self.model.forward}
        choices = OwnChoices(loss=loss_of, metric="loss", at=self.model.at, budget=budget, device="cpu", **options)
        val = self.batches(run)
        return Grower(model, optimizer, val=val, choices=choices, policy=OneSeed(), run_dir=where), optimizer

    def play(self, model: nn.Module, run: int, midway: bytes | None = None) -> Course:
        """A whole run, or the rest of one; a seed must be kept."""
        grower, optimizer = self.grower(model, run, self.folder / f"run{run}")
        if midway is not None:
            grower.load_state_dict(torch.load(io.BytesIO(midway), weights_only=True))
        torch.manual_seed(1)
        kept = b""
        with grower:
            self.equal = self.equal or same(self.said(model), self.bare)
            while not any(slot.stage is SeedStage.FOSSILIZED for slot in grower.view.slots):
                slots = [f"{each.slot_id} {each.stage.name} {','.join(each.blocked_by)}" for each in grower.view.slots]
                assert grower.view.epoch < EPOCHS, f"no seed was kept: {'; '.join(slots)}"
                frozen_statistics(model.train())
                for inputs, targets in self.batches(run):
                    optimizer.zero_grad()
                    torch.autograd.backward(grower.loss(inputs, targets))
                    grower.after_backward()
                    optimizer.step()
                grower.after_epoch()
                if any(slot.stage is SeedStage.BLENDING for slot in grower.view.slots):
                    buffer = io.BytesIO()
                    torch.save(grower.state_dict(), buffer)
                    kept = buffer.getvalue()
            names = tuple(slot.slot_id for slot in grower.view.slots)
        return Course(grower.result, kept, names)

    # --- the columns ----------------------------------------------------------------------------------------------

    def wrapped(self) -> None:
        """Tried where the run of the next column begins."""
        self.bare = self.said(self.make())
        try:
            self.course = self.play(self.make(), 1)
        except Exception as error:
            if not self.equal:
                raise
            self.trouble = error
        assert self.equal, "outputs differ"

    def grown(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def exported(self) -> None:
        assert self.course is not None
        path = self.course.result.run_dir / "model" / "model.py"
        spec = importlib.util.spec_from_file_location("exported", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        needs_host = "load(host) needs a" in path.read_text(encoding="utf-8")
        loaded = module.load(self.make(7)) if needs_host else module.load()
        assert close(self.said(loaded), self.said(self.course.result.model)), "outputs differ"

    def resumed(self) -> None:
        assert self.course is not None
        again = self.play(self.make(7), 1, self.course.midway)
        assert same(self.said(again.result.model), self.said(self.course.result.model)), "outputs differ"

    def grown_again(self) -> None:
        assert self.course is not None
        before = size(self.course.result.model)
        again = self.play(self.course.result.model, 2).result.model
        assert size(again) > before, "nothing was added"

    def run(self) -> None:
        """Fill the cells; without a grown model those behind it stay open."""
        for column in COLUMNS:
            self.cells[column] = self.outcome(column)
            if column in ("wrapped", "grown") and self.cells[column] != PASSED:
                return

    def outcome(self, column: str) -> str:
        try:
            getattr(self, column.replace(" ", "_"))()
        except EsperError as error:
            return f"refused: {error}".replace(str(self.folder), "RUN")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}".replace("\n", " ")
            return f"FAILED: {said[:300]} ({Path(where.filename).name}:{where.lineno})"
        return PASSED


def frozen_statistics(model: nn.Module) -> None:
    """Hold batch norms in evaluation mode: of so few examples their statistics are noise, to a seed and its gates."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def plain(model: nn.Module, inputs: Any) -> Any:
    return model(inputs)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def close(one: Any, other: Any) -> bool:
    """Whether outputs are the same but for rounding."""
    left, right = dict(tensors(one)), dict(tensors(other))
    wide = torch.complex128
    return left.keys() == right.keys() and all(
        torch.allclose(tensor.to(wide), right[path].to(wide), TOLERANCE, TOLERANCE) for path, tensor in left.items()
    )


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The page's section on models; what was refused is told below."""
    notes: dict[str, int] = {}
    lines = [f"| package | model | slots found | {' | '.join(COLUMNS)} |", f"|---|---|---|{'---|' * len(COLUMNS)}"]
    for row in found:
        cells = []
        for column in COLUMNS:
            said = row["cells"].get(column)
            if said is None or said == PASSED:
                cells.append("" if said is None else "✓")
            else:
                number = notes.setdefault(said.removeprefix("refused: "), len(notes) + 1)
                cells.append(f"{said.partition(':')[0]} [{number}]")
        lines.append(f"| {row['package']} | {row['model']} | {', '.join(row['slots'])} | {' | '.join(cells)} |")
    count = sum(said == PASSED for row in found for said in row["cells"].values())
    refused = sum(said.startswith("refused") for row in found for said in row["cells"].values())
    failed = sum(said.startswith("FAILED") for row in found for said in row["cells"].values())
    packages = {row["package"] for row in found} - {"odd"}
    head = (
        f"{len(found)} models, {len(packages)} packages and odd ones: {count} cells passed, {refused} refused,"
        f" {failed} failed."
    )
    legend = "\n".join(f"- *{column}*: {what}" for column, what in EXPLAINED.items())
    below = "\n".join(f"{number}. {said}" for said, number in notes.items())
    return "\n\n".join(part for part in (head, legend, "\n".join(lines), below) if part)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 where a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="these models, or packages, alone")
    parser.add_argument("--run", type=Path, metavar="FILE", help="keep what was found; what is there is not done again")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the table into this page")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if options.run is not None and options.run.exists():
        for line in options.run.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known[row["package"], row["model"]] = row
    found = []
    for package, models in PACKAGES.items():
        for name, model in models.items():
            if options.only and not {name, package} & set(options.only):
                continue
            row = known.get((package, name)) or measured(package, name, model)
            found.append(row)
            if options.run is not None and (package, name) not in known:
                with options.run.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    text = table(found)
    if options.into is not None:
        into_page(options.into, "models", text)
    print(text.partition("\n")[0])
    return int(any(said.startswith("FAILED") for row in found for said in row["cells"].values()))


def measured(package: str, name: str, model: Model) -> dict[str, Any]:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="compatibility-") as folder:
        trial = Trial(model, Path(folder))
        trial.run()
    slots = [] if trial.course is None else list(trial.course.slots)
    print(f"{package} | {name} | {time.perf_counter() - began:.1f} s | {slots} | {trial.cells}", flush=True)
    return {"package": package, "model": name, "slots": slots, "cells": trial.cells}


if __name__ == "__main__":
    raise SystemExit(main())
