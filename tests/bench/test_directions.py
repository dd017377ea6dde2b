"""Rank that is grown from none: what the directions are, and what a bench makes of them."""

from dataclasses import replace

import pytest
import torch
from test_rivals import pictures, tiny_text
from torch import nn

from esper.bench.directions import AMPLITUDES, BLUEPRINT, check, directions, grow_rank
from esper.bench.plant import one_batch
from esper.kasmina.slot_config import SlotConfig
from esper.leyline import EnvSpec, SeedStage, UsageError
from esper.tolaria.setup import TrainerConfig, from_task
from esper.tolaria.trainer import Trainer


def least_squares(x, g, rank):
    """The slow reference: the whole map by least squares, cut to its rank on what the inputs are."""
    whole = torch.linalg.lstsq(x, -g).solution.T
    left, sizes, right = torch.linalg.svd(x @ whole.T, full_matrices=False)
    return left[:, :rank] * sizes[:rank] @ right[:rank]


def test_no_map_of_that_rank_is_nearer_to_what_is_wanted(monkeypatch):
    monkeypatch.setattr("esper.bench.directions.DAMPING", 0.0)
    torch.manual_seed(0)
    x, g = torch.randn(60, 7, dtype=torch.float64), torch.randn(60, 5, dtype=torch.float64)
    down, up = directions(x, g, 2)
    assert torch.allclose(x @ down.T @ up.T, least_squares(x, g, 2), atol=1e-5)
    assert torch.allclose(down.norm(dim=1), torch.full((2,), 3**-0.5, dtype=torch.float64))
    other = torch.linalg.norm(x @ torch.randn(2, 7, dtype=torch.float64).T @ up.T + g)
    assert torch.linalg.norm(x @ down.T @ up.T + g) < other


def test_rank_is_added_where_it_lowers_the_loss_and_its_work_is_counted():
    task = tiny_text()
    config = TrainerConfig(batch_size=16, slot=SlotConfig(generations=2))
    trainer = Trainer(EnvSpec(0, 0, 1, 2), task, from_task(task, config), config, lambda event: None)
    trainer.train_epoch()
    inputs, targets = one_batch(trainer)

    def loss():
        trainer.model.eval()
        with torch.no_grad():
            return float(trainer.setup.criterion(trainer.setup.forward(trainer.model, inputs), targets))

    before, counted = loss(), trainer.ledger.probe_macs
    best = grow_rank(trainer, seed=7)
    assert best in AMPLITUDES[1:]
    assert loss() < before
    assert trainer.ledger.probe_macs > counted
    slots = trainer.model.slots.values()
    assert {slot.state.blueprint_id for slot in slots} == {BLUEPRINT}
    assert {slot.stage for slot in slots} == {SeedStage.FOSSILIZED}


def test_what_is_no_linear_layer_is_refused():
    check(tiny_text())
    with pytest.raises(UsageError, match=r"arm 'growra' .* of task 'tiny-text' 'first' is not"):
        check(pictures())
    narrow = nn.Sequential(nn.Linear(12, 1))
    with pytest.raises(UsageError, match="of 2 channels or more"):
        check(replace(tiny_text(), host=lambda: narrow, sites={"only": "+0"}))
    behind = replace(tiny_text(), sites={"head": "classifier"})
    with pytest.raises(UsageError, match="'head' is not"):
        check(behind)
