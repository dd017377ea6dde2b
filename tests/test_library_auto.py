"""``policy="auto"`` on a frozen model: places by audition, seeds beside its modules, a plain model back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from esper.library import Budget, GateThresholds
from esper.nissa.reader import read_journal
from esper.run.own import LEAST_PLACED

pytestmark = pytest.mark.usefixtures("without_figures")


class Frozen(nn.Module):
    """Two branches; what the targets ask for was taken out of ``broken``, and ``fine`` is right."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.broken = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(64, 2)
        for part in (self.fine, self.broken):
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(self.fine(x[:, :32])), torch.relu(self.broken(x[:, 32:]))], 1))


def world() -> tuple[Frozen, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = Frozen()
        x = torch.randn(480, 64)
        direction = torch.randn(32)
        direction /= direction.norm()
        y = ((x[:, 32:] @ direction).abs() > 0.7).long()
        host.broken.weight.sub_(torch.outer(host.broken.weight @ direction, direction))
    pairs = [(x[i : i + 24], y[i : i + 24]) for i in range(0, 480, 24)]
    return host, pairs[:12], pairs[12:]


def test_it_grows_where_a_frozen_model_lacks_something(tmp_path: Path) -> None:
    host, train, val = world()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    budget = Budget(epochs=9, lr=1e-2, gates=GateThresholds(min_training_epochs=2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = esper.grow(
            host,
            train=train,
            val=val,
            loss=nn.CrossEntropyLoss(),
            policy="auto",
            budget=budget,
            run_dir=tmp_path / "run",
        )
    told = list(read_journal(found.run_dir))
    (promises,) = [each.data["promises"] for each in told if each.event_type is T.PROMISES_MEASURED]
    assert promises.keys() == {"fine", "broken"} and promises["broken"] > promises["fine"], promises
    grown = [each.slot_id for each in told if each.event_type is T.SEED_GERMINATED]
    assert grown[0] == "broken"
    metrics = [each.data["validation_metric"] for each in told if each.event_type is T.EPOCH_COMPLETED]
    assert max(metrics) > metrics[0] + 10.0
    after = found.model.state_dict()
    assert after.keys() == before.keys(), "what is linear was folded"
    assert torch.equal(after["fine.bias"], before["fine.bias"])
    assert not torch.equal(after["broken.weight"], before["broken.weight"])


def test_three_epochs_are_enough_and_two_are_refused(tmp_path: Path) -> None:
    host, train, val = world()
    with pytest.raises(UsageError, match=f"kept after {LEAST_PLACED} at the earliest"):
        esper.grow(
            host,
            train=train,
            val=val,
            loss=nn.CrossEntropyLoss(),
            policy="auto",
            budget=Budget(epochs=2),
            run_dir=tmp_path,
        )


def test_where_nothing_frozen_can_carry_a_seed_it_is_said(tmp_path: Path) -> None:
    _, train, val = world()
    with pytest.raises(UsageError, match="no linear layer or convolution of the host is frozen"):
        esper.grow(
            nn.Linear(64, 2),
            train=train,
            val=val,
            loss=nn.CrossEntropyLoss(),
            at="beside",
            policy="auto",
            run_dir=tmp_path,
        )
