"""Figures of ``grow`` are those of the user's own evaluation, whatever the loss, the metric and its unit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from esper.leyline import (
    GateThresholds,
    Metric,
)
from esper.library import Budget, GrowResult, Scored, grow
from esper.nissa.reader import read_journal
from four_classes import EPOCHS, KeepOne, loader
from own_loop import narrow, products


@pytest.mark.parametrize("policy", ["heuristic", "esper-v1"])
def test_the_unit_of_the_metric_decides_nothing(policy: str, tmp_path: Path) -> None:
    units: dict[str, str | Scored] = {
        "percent": "accuracy",
        "fraction": Scored(Metric("accuracy", "", low=0.0, high=1.0), lambda out, y: (out.argmax(1) == y).float()),
        "error": Scored(
            Metric("error", "", higher_is_better=False, low=0.0, high=1.0), lambda out, y: (out.argmax(1) != y).float()
        ),
    }
    decided = {}
    for name, metric in units.items():
        result = grow(
            narrow(),
            train=loader(640, 0, shuffle=True),
            val=loader(256, 1),
            loss=nn.CrossEntropyLoss(),
            metric=metric,
            at=["1"],
            policy=policy,
            budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
            run_dir=tmp_path / name,
        )
        events = list(read_journal(result.run_dir))
        told = [e for e in events if e.event_type.name.startswith("SEED_") or "op" in e.data]
        decided[name] = [(e.epoch, e.event_type.name, e.data.get("op"), e.data.get("passed")) for e in told]
        (announced,) = [e.data["metric"] for e in events if e.event_type.name == "TRAINING_STARTED"]
        shown = announced["chance"] / (100.0 if name == "percent" else 1.0)
        assert shown == pytest.approx(77 / 256 if name != "error" else 179 / 256)
    assert any(event[1] == "SEED_FOSSILIZED" for event in decided["percent"])
    assert decided["percent"] == decided["fraction"] == decided["error"]


def test_an_object_of_torchmetrics_judges_seeds(tmp_path: Path) -> None:
    f1 = MulticlassF1Score(4, average="macro", validate_args=False)
    result = grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        metric=f1,
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
        run_dir=tmp_path / "run",
    )
    inputs, targets = products(256, 1)
    with torch.no_grad():
        assert told(result)[0] == pytest.approx(float(f1(result.model(inputs), targets)), abs=1e-6)
    kept = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_FOSSILIZED"]
    assert len(kept) == 1 and kept[0]["removal_cost_loss"] > 0.0 and kept[0]["removal_cost_se"] > 0.0
    verdicts = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GATE_EVALUATED"]
    least = {c["threshold"] for v in verdicts for c in v.get("checks", ()) if c["id"] == "removal_cost_upper"}
    assert least == {0.005}


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_a_loss_of_whole_batches_gives_gates_their_evidence(batches: int, tmp_path: Path) -> None:
    inputs, targets = products(240, 0)
    size = 240 // batches
    val = [(inputs[i : i + size], targets[i : i + size]) for i in range(0, 240, size)]
    result = grow(
        small(6),
        train=val,
        val=val,
        loss=contrastive,
        metric="loss",
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=6, lr=1e-2, parameters=5000, gates=GateThresholds(min_training_epochs=1)),
        run_dir=tmp_path / "run",
    )
    verdicts = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "SEED_GATE_EVALUATED"]
    bounds = [c["measured"] for v in verdicts for c in v.get("checks", ()) if c["id"] == "probe_gain_loss_lower"]
    assert bounds and all(math.isfinite(bound) for bound in bounds)


def test_what_gates_ask_can_be_set(tmp_path: Path) -> None:
    gates = GateThresholds(min_training_epochs=1, min_removal_cost=1.0)
    grow(
        narrow(),
        train=loader(640, 0, shuffle=True),
        val=loader(256, 1),
        loss=nn.CrossEntropyLoss(),
        at=["1"],
        policy=KeepOne(),
        budget=Budget(epochs=EPOCHS, lr=5e-3, parameters=5000, gates=gates),
        run_dir=tmp_path / "run",
    )
    verdicts = [e.data for e in read_journal(tmp_path / "run") if e.event_type.name == "SEED_GATE_EVALUATED"]
    (blending,) = [each for each in verdicts if each["gate"] == "G2" and each["passed"]]
    (asked,) = {
        (each["threshold"], each["unit"])
        for verdict in verdicts
        if verdict["gate"] == "G5"
        for each in verdict["checks"]
        if each["id"] == "removal_cost_upper"
    }
    assert asked == (100.0, "%") and blending["checks_passed"]
    assert not any(verdict["passed"] for verdict in verdicts if verdict["gate"] == "G5")


class Tokens(nn.Module):
    """Scores of the next of ten tokens, the classes last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.embed(tokens)))
        return scores


class TwoHeads(nn.Module):
    """A tuple of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.body(x)
        return tuple(head(h)[:, 0] for head in self.heads)


class Named(TwoHeads):
    """A mapping of outputs."""

    def forward(self, x: Tensor) -> Any:
        one, other = super().forward(x)
        return {"one": one, "other": other}


def contrastive(output: Tensor, targets: Tensor) -> Tensor:
    one, other = (nn.functional.normalize(half, dim=1) for half in output.chunk(2, 1))
    return nn.functional.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


def flat(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.reshape(-1, 10), targets.reshape(-1))


def told(result: GrowResult) -> tuple[float, float]:
    """Metric and loss of the last epoch."""
    last = [e.data for e in read_journal(result.run_dir) if e.event_type.name == "EPOCH_COMPLETED"][-1]
    return last["validation_metric"], last["validation_loss"]


FEATURES = torch.randn(140, 6, generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(10, (140, 10), generator=torch.Generator().manual_seed(0))
PADDED = ((WORDS + 1) % 10).masked_fill(torch.arange(10) > torch.arange(140)[:, None] % 7, -100)
CE, BCE = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0]))
KL = nn.KLDivLoss(reduction="batchmean")
RARE = (FEATURES[:, 0] > 1.2).long()
SHARES = FEATURES[:, :3].softmax(1)


def small(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, width))


def batched(loss: Any) -> Any:
    """In a user's own evaluation: batches of 50, 50 and 40, by their examples."""

    def whole(output: Any, targets: Tensor) -> Tensor:
        cuts = [slice(0, 50), slice(50, 100), slice(100, 140)]
        return sum(loss(output[cut], targets[cut]) * len(targets[cut]) for cut in cuts) / 140  # type: ignore[return-value]

    return whole


class Turned(nn.Module):
    """Classes in front of positions, as torch has them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.inner(tokens)
        return scores.mT


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "loss", "metric", "own"),
    [
        (Tokens, WORDS, PADDED, flat, "accuracy", lambda o, y: (o.argmax(2) == y)[y != -100]),
        (lambda: Turned(Tokens()), WORDS, PADDED, CE, "accuracy", lambda o, y: (o.argmax(1) == y)[y != -100]),
        (Tokens, WORDS, (WORDS + 1) % 10, flat, "accuracy", lambda o, y: o.argmax(2) == y),
        (lambda: small(2), FEATURES, RARE, WEIGHTED, "accuracy", lambda o, y: o.argmax(1) == y),
        (lambda: small(1), FEATURES, RARE[:, None].float(), BCE, "accuracy", lambda o, y: (o > 0) == (y > 0)),
        (lambda: small(3), FEATURES, (FEATURES[:, :3] > 0).float(), BCE, "accuracy", lambda o, y: (o > 0) == (y > 0)),
        (lambda: small(3).append(nn.LogSoftmax(1)), FEATURES, SHARES, KL, "loss", None),
        (lambda: small(6), FEATURES, RARE, contrastive, "loss", None),
        (TwoHeads, FEATURES, FEATURES[:, :2], lambda o, y: (torch.stack(o, 1) - y).abs().mean(), "loss", None),
        (Named, FEATURES, FEATURES[:, 0], lambda o, y: (o["one"] - y).abs().mean() + o["other"].mean(), "loss", None),
    ],
)
def test_figures_are_those_of_a_loop_of_ones_own(
    model: Any, inputs: Tensor, targets: Tensor, loss: Any, metric: str, own: Any, tmp_path: Path
) -> None:
    data = [(inputs[a:b], targets[a:b]) for a, b in ((0, 50), (50, 100), (100, 140))]
    torch.manual_seed(0)
    result = grow(
        model(),
        train=data,
        val=data,
        loss=loss,
        metric=metric,
        policy="static",
        budget=Budget(epochs=1, lr=1e-2),
        run_dir=tmp_path / "run",
    )
    with torch.no_grad():
        output = result.model(inputs)
        # by what the loss counts it is the loss of the split at once; a contrastive one, and one that a function
        # reduces, are what they are of each batch
        of_batches = loss in (contrastive, flat)
        expected = float(batched(loss)(output, targets) if of_batches else loss(output, targets))
        shown = 100.0 * float(own(output, targets).double().mean()) if own is not None else expected
    assert told(result) == pytest.approx((shown, expected), rel=1e-4)
