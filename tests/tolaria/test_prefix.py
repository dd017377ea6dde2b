"""A frozen part in front of all that learns is computed once: the same training bit for bit, for less work.

What is held computes with small whole numbers, so that no order of adding changes a bit on any processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.bench.plant import Planted, plant
from esper.bench.settings import Initial
from esper.kasmina import prefix
from esper.kasmina.macs import counting
from esper.leyline import EnvSpec
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tolaria.setup import TrainerConfig, from_task
from esper.tolaria.trainer import Trainer

EPOCHS = 12


class Blocks(nn.Module):
    """Three maps that are held, with nothing or ``between`` in front of the second, and a head that learns."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.between = nn.Identity() if between is None else between
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_((4 * parameter).round())
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.between(torch.relu(self.first(x)))
        h = torch.relu(self.second(h))
        out: Tensor = self.head(torch.relu(self.third(h)) / 64)
        return out


class MinusMean(nn.Module):
    """Each example depends on the others of its batch."""

    def forward(self, h: Tensor) -> Tensor:
        return h - h.mean(dim=0).round()


class Counted(nn.Module):
    """Writes into a buffer whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[operator]
        return h


def task(between: Callable[[], nn.Module] | None = None, augment: Any = None) -> TaskSpec:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-3, 4, (84, 4), generator=generator).float()
    whole = Split(inputs, torch.randint(3, (84,), generator=generator))
    parts = (whole.take(part) for part in torch.arange(84).split([44, 20, 20]))
    return TaskSpec(
        name="held",
        description="whole numbers",
        metric=accuracy_metric(chance=33.0),
        host=lambda: Blocks(between() if between else None),
        sites={"early": "+first", "middle": "+second", "late": "third"},
        blueprints=("lora2", "mlp"),
        loss=cross_entropy,
        score=accuracy,
        data=Data.of(*parts, source="made up for a test"),
        budget=TaskBudget(max_epochs=EPOCHS, batch_size=16, lr=1e-2),
        augment=augment,
    )


Meanwhile = Callable[[Trainer, int], None]


def nothing(trainer: Trainer, epoch: int) -> None:
    """Goes on."""


def grows(trainer: Trainer, epoch: int) -> None:
    """A seed behind the third map, later one beside the second."""
    if epoch == 1:
        plant(trainer, [Planted("late", "mlp", 1)], Initial.DEFAULT)
    if epoch == 7:
        plant(trainer, [Planted("middle", "lora2", 2)], Initial.DEFAULT)


def opens_again(trainer: Trainer, epoch: int) -> None:
    """A seed beside the second map is kept and its slot opens again: what is beneath goes on learning."""
    slot = trainer.model.slots["middle"]
    if epoch == 1:
        plant(trainer, [Planted("middle", "lora2", 2)], Initial.DEFAULT)
        slot.config = replace(slot.config, generations=2)
        slot.tick()
        assert slot.seed is None
        assert slot.kept


def thaws(trainer: Trainer, epoch: int) -> None:
    """The first map learns, too, from some epoch on."""
    if epoch == 6:
        trainer.model.host.first.requires_grad_(True)  # type: ignore[union-attr]
        trainer.optimizer.param_groups[0]["params"] += list(trainer.model.host.first.parameters())  # type: ignore[union-attr]


def writes(trainer: Trainer, epoch: int) -> None:
    """Somebody writes into a weight that is held."""
    if epoch == 7:
        with torch.no_grad():
            trainer.model.host.second.weight.add_(1.0)  # type: ignore[union-attr]


def played(of: TaskSpec, meanwhile: Meanwhile = nothing) -> tuple[Trainer, list[Any]]:
    config = TrainerConfig(batch_size=of.budget.batch_size, lr=1e-2)
    trainer = Trainer(EnvSpec(0, 0, 3, EPOCHS), of, from_task(of, config), config, lambda event: None)
    seen = []
    for epoch in range(EPOCHS):
        meanwhile(trainer, epoch)
        loss = trainer.train_epoch().loss
        off = [{slot_id: 0.0} for slot_id, slot in trainer.model.slots.items() if slot.live]
        found = trainer.evaluate([{}, *off], "validation")
        seen.append((loss, found.metric.tolist(), found.loss.tolist(), found.loss_se.tolist()))
    found = trainer.evaluate([{}], "test")
    return trainer, [*seen, found.loss.tolist()]


def without(monkeypatch: pytest.MonkeyPatch, of: TaskSpec, meanwhile: Meanwhile = nothing) -> tuple[Trainer, list[Any]]:
    """The same where nothing is ever played back."""
    with monkeypatch.context() as patch:
        patch.setattr(prefix.Prefix, "active", False)
        return played(of, meanwhile)


def same_weights(one: Trainer, other: Trainer) -> bool:
    mine, others = one.model.state_dict(), other.model.state_dict()
    return set(mine) == set(others) and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("meanwhile", [nothing, grows, opens_again, writes, thaws], ids=lambda each: each.__name__)
def test_training_is_the_same_bit_for_bit_and_takes_less(monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile) -> None:
    (kept, seen), (plain, expected) = played(task(), meanwhile), without(monkeypatch, task(), meanwhile)
    assert seen == expected
    assert same_weights(kept, plain)
    for purpose in ("train_forward_macs", "validation_macs"):
        assert getattr(kept.ledger, purpose) < getattr(plain.ledger, purpose)
    assert kept.ledger.train_backward_macs == plain.ledger.train_backward_macs
    assert kept.ledger.test_macs == plain.ledger.test_macs


@pytest.mark.parametrize("meanwhile", [nothing, grows, opens_again], ids=lambda each: each.__name__)
def test_what_is_booked_is_what_runs(meanwhile: Meanwhile) -> None:
    of = task()
    config = TrainerConfig(batch_size=16, lr=1e-2)
    trainer = Trainer(EnvSpec(0, 0, 3, EPOCHS), of, from_task(of, config), config, lambda event: None)
    for epoch in range(EPOCHS):
        meanwhile(trainer, epoch)
        _ = trainer.macs, trainer.step_macs(())
        trainer.prefix.look()  # by passes that are not booked
        before = trainer.ledger.total_macs
        with counting() as counter:
            trainer.train_epoch()
            trainer.evaluate(
                [{}, *({slot_id: 0.0} for slot_id, slot in trainer.model.slots.items() if slot.live)], "validation"
            )
        assert trainer.ledger.total_macs - before == pytest.approx(counter.total, rel=0.02)


def test_only_what_is_needed_is_kept() -> None:
    """Of the maps in front of the head the last: 6 numbers an example, in stores that begin with 256 rows."""
    trainer, _ = played(task())
    assert trainer.prefix.off == {}
    assert trainer.prefix.macs == 4 * 6 + 6 * 6 + 6 * 6
    kinds = 3  # batches of 16 and 12 in training, of 20 in evaluation
    assert trainer.prefix.size() == kinds * prefix.FIRST_ROWS * 6 * 4


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (lambda: nn.Dropout(0.5), "dropout 'Dropout' is in training mode"),
        (lambda: nn.BatchNorm1d(6, affine=False), "is in training mode"),
        (MinusMean, "other bits for the same example in another batch"),
        (Counted, "writes into a buffer"),
    ],
)
def test_what_is_not_the_same_each_time_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, between: Callable[[], nn.Module], said: str
) -> None:
    (kept, seen), (plain, expected) = played(task(between)), without(monkeypatch, task(between))
    assert seen == expected
    assert same_weights(kept, plain)
    assert said in kept.prefix.off["training"]
    assert kept.ledger.train_forward_macs == plain.ledger.train_forward_macs


def test_augmented_examples_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.randint(-1000, 1000, inputs.shape, generator=generator)

    (kept, seen), (_, expected) = played(task(augment=shifted)), without(monkeypatch, task(augment=shifted))
    assert seen == expected
    assert "do not come again" in kept.prefix.off["training"]
    assert "evaluation" not in kept.prefix.off


def test_a_module_that_is_watched_runs() -> None:
    seen: list[int] = []

    def host() -> nn.Module:
        made = Blocks()
        made.second.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        return made

    trainer, _ = played(replace(task(), host=host))
    assert "somebody watches Linear by a hook" in trainer.prefix.off["training"]
    assert len(seen) >= EPOCHS * 4


def test_what_is_large_is_mapped_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "IN_MEMORY", 0)
    monkeypatch.setattr(prefix, "FIRST_ROWS", 1)
    (kept, seen), (_, expected) = played(task()), without(monkeypatch, task())
    assert seen == expected
    rows = [
        each
        for store in kept.prefix._stores.values()
        for calls in store.kept.values()
        for _, own in calls
        for each in own
    ]
    assert rows
    assert all(each.mapped for each in rows)


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "MOST_BYTES", 100)
    trainer, _ = played(task())
    assert "would take more than" in trainer.prefix.off["training"]
    assert trainer.prefix.size() == 0
