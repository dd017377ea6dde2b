"""Rewards on hosts that really train: tricks, rollbacks, controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny

from esper.leyline import WAIT, Blend, Decision, FactoredAction, Op, UsageError
from esper.simic.env import GrowConfig
from esper.simic.rewards import RewardConfig, RewardMode
from esper.simic.workers import Here
from esper.simic.world import StepOutcome, World, episode_seed, held_out_seed
from esper.tolaria.legality import why_illegal

GERMINATE = FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1)
PRUNE = FactoredAction(Op.PRUNE, "first")


def engine(world: World) -> Any:
    (worker,) = world.crew.workers
    assert isinstance(worker, Here)
    return worker.share.executor.engine


def make(epochs: int = 6, **reward: object) -> World:
    return GrowConfig(task=tiny(epochs), reward=RewardConfig(**reward)).world()[0]  # type: ignore[arg-type]


def play(world: World, actions: Sequence[FactoredAction], seed: int = 1) -> list[StepOutcome]:
    world.begin([seed])
    outcomes = []
    for epoch in range(world.config.max_epochs):
        wanted = actions[epoch] if epoch < len(actions) else WAIT
        action = WAIT if why_illegal(world.views[0], wanted) else wanted
        outcomes += world.step([Decision(action, "scripted")])
    return outcomes


@pytest.mark.parametrize("mode", list(RewardMode))
def test_scripted_tricks_pay_no_more_than_waiting(mode: str) -> None:
    """Whatever seeds did behind the host, it ends as the static one does (probe seeds never touched it)."""
    honest = play(make(mode=mode), [])[-1].account.paid
    for script in ([GERMINATE, PRUNE] * 3, [GERMINATE], [WAIT] * 5 + [GERMINATE]):
        outcomes = play(make(mode=mode), script)
        assert outcomes[-1].ended and outcomes[-1].view.live_seeds == 0
        assert outcomes[-1].account.paid <= honest + 1e-9, (mode, script)


def test_the_return_is_the_objectives_gain() -> None:
    world = make()
    account = play(world, [GERMINATE])[-1].account
    metric = engine(world).evaluate([0], [[{}]]).metric[0, 0]
    assert account.last.metric == metric and account.steps == 6
    assert account.paid == pytest.approx(account.gain)


def test_a_rollback_takes_back_what_its_branch_was_paid() -> None:
    world = make()
    world.begin([1])
    for _ in range(2):
        world.step([Decision(WAIT, "")])
    trainer = engine(world)._rows[0].trainer
    with torch.no_grad():
        next(iter(trainer.host_parameters)).fill_(float("nan"))
    (broken,) = world.step([Decision(WAIT, "")])
    assert broken.report.rolled_back
    account = world.accounts[0]
    there = engine(world).evaluate([0], [[{}]]).metric[0, 0]
    assert account.paid == pytest.approx(there - account.start.metric)


def test_rent_can_be_on_multiply_accumulates() -> None:
    world = make(rent_on="macs")
    world.begin([1])
    (outcome,) = world.step([Decision(GERMINATE, "")])
    assert outcome.account.last.growth > 0
    assert outcome.paid.components["rent"] < 0


def test_the_control_is_the_static_host_of_the_same_seed() -> None:
    plain, controlled = make(), make(control=True)
    static = [outcome.paid.total for outcome in play(plain, [], seed=7)]
    outcomes = play(controlled, [], seed=7)
    assert any(abs(value) > 0 for value in static)
    assert all(outcome.paid.total == pytest.approx(0.0, abs=1e-9) for outcome in outcomes)
    assert controlled._curves.keys() == {7}
    again = play(controlled, [GERMINATE], seed=7)
    assert len(again) == 6 and controlled._curves.keys() == {7}


def test_rows_differ_by_their_seeds_alone() -> None:
    world = make(3)
    world.begin([5, 5, 6])
    outcomes = world.step([Decision(WAIT, "")] * 3)
    losses = [outcome.view.loss for outcome in outcomes]
    assert losses[0] == losses[1] != losses[2]


def test_seeds_never_meet() -> None:
    training = {episode_seed(0, number) for number in range(1000)}
    held_out = {held_out_seed(0, number) for number in range(1000)}
    assert len(training) == 1000 and len(held_out) == 1000 and not training & held_out


def test_the_end_is_the_end() -> None:
    world = make(1)
    with pytest.raises(UsageError, match="begin"):
        world.step([Decision(WAIT, "")])
    assert play(world, [])[0].ended
    with pytest.raises(UsageError, match="begin"):
        world.step([Decision(WAIT, "")])
    with pytest.raises(UsageError, match="max_epochs|epochs"):
        replace(world.config, max_epochs=0)
