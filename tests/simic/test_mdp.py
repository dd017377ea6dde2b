"""Rewards on hosts that really train: tricks, rollbacks, controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny

from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, Op, UsageError
from esper.simic.env import GrowConfig
from esper.simic.mdp import GrowthMDP, StepOutcome, episode_seed, held_out_seed
from esper.simic.rewards import RewardConfig, RewardMode
from esper.simic.workers import LocalWorker, ResetResult, WorkerPool
from esper.tolaria.legality import why_illegal

GERMINATE = FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1)
PRUNE = FactoredAction(Op.PRUNE, "first")


def engine(mdp: GrowthMDP) -> Any:
    (worker,) = mdp.pool.workers
    assert isinstance(worker, LocalWorker)
    return worker.share.executor.engine


def make(epochs: int = 6, **reward: object) -> GrowthMDP:
    return GrowConfig(task=tiny(epochs), reward=RewardConfig(**reward)).mdp()[0]  # type: ignore[arg-type]


def play(mdp: GrowthMDP, actions: Sequence[FactoredAction], seed: int = 1) -> list[StepOutcome]:
    mdp.begin([seed])
    outcomes = []
    for epoch in range(mdp.config.max_epochs):
        wanted = actions[epoch] if epoch < len(actions) else WAIT
        action = WAIT if why_illegal(mdp.views[0], wanted) else wanted
        outcomes += mdp.step([Decision(action, "scripted")])
    return outcomes


@pytest.mark.parametrize("mode", list(RewardMode))
def test_scripted_tricks_pay_no_more_than_waiting(mode: str) -> None:
    """Whatever seeds did behind the host, it ends as the static one does (probe seeds never touched it)."""
    honest = play(make(mode=mode), [])[-1].tracker.paid
    for script in ([GERMINATE, PRUNE] * 3, [GERMINATE], [WAIT] * 5 + [GERMINATE]):
        outcomes = play(make(mode=mode), script)
        assert outcomes[-1].ended and outcomes[-1].view.live_seeds == 0
        assert outcomes[-1].tracker.paid <= honest + 1e-9, (mode, script)


def test_the_return_is_the_objectives_gain() -> None:
    mdp = make()
    tracker = play(mdp, [GERMINATE])[-1].tracker
    metric = engine(mdp).evaluate([0], [[{}]]).metric[0, 0]
    assert tracker.last.metric == metric and tracker.steps == 6
    assert tracker.paid == pytest.approx(tracker.gain)


def test_a_rollback_takes_back_what_its_branch_was_paid() -> None:
    mdp = make()
    mdp.begin([1])
    for _ in range(2):
        mdp.step([Decision(WAIT, "")])
    trainer = engine(mdp)._envs[0].trainer
    with torch.no_grad():
        next(trainer.model.host_parameters()).fill_(float("nan"))
    (broken,) = mdp.step([Decision(WAIT, "")])
    assert broken.report.rolled_back
    tracker = mdp.trackers[0]
    there = engine(mdp).evaluate([0], [[{}]]).metric[0, 0]
    assert tracker.paid == pytest.approx(there - tracker.start.metric)


def test_rent_can_be_on_multiply_accumulates() -> None:
    mdp = make(rent_on="macs")
    mdp.begin([1])
    (outcome,) = mdp.step([Decision(GERMINATE, "")])
    assert outcome.tracker.last.growth > 0
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


def test_a_control_is_played_once_for_all_rounds_and_over_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[str, int]] = []
    begin = WorkerPool.begin

    def counted(pool: WorkerPool, specs: Sequence[EnvSpec]) -> list[ResetResult]:
        played.extend((spec.arm, spec.seed) for spec in specs)
        return begin(pool, specs)

    monkeypatch.setattr(WorkerPool, "begin", counted)
    mdp, beside = make(4, control=True), make(4, control=True)
    for _ in range(3):
        first = [outcome.paid.total for outcome in play(mdp, [GERMINATE], seed=7)]
    assert played.count(("static", 7)) == 1 and played.count(("grown", 7)) == 3
    mdp.begin([7])
    mdp.step([Decision(GERMINATE, "scripted")])
    resumed = make(4, control=True)
    resumed.load(mdp.state())
    after = [resumed.step([Decision(WAIT, "scripted")])[0].paid.total for _ in range(3)]
    assert after == first[1:]
    again = [outcome.paid.total for outcome in play(resumed, [GERMINATE], seed=7)]
    assert again == first and played.count(("static", 7)) == 1
    assert [outcome.paid.total for outcome in play(beside, [GERMINATE], seed=7)] == first, "as if it was played anew"


def test_rows_differ_by_their_seeds_alone() -> None:
    mdp = make(3)
    mdp.begin([5, 5, 6])
    outcomes = mdp.step([Decision(WAIT, "")] * 3)
    losses = [outcome.view.loss for outcome in outcomes]
    assert losses[0] == losses[1] != losses[2]


def test_seeds_never_meet() -> None:
    training = {episode_seed(0, number) for number in range(1000)}
    held_out = {held_out_seed(0, number) for number in range(1000)}
    assert len(training) == 1000 and len(held_out) == 1000 and not training & held_out


def test_the_end_is_the_end() -> None:
    mdp = make(1)
    with pytest.raises(UsageError, match="begin"):
        mdp.step([Decision(WAIT, "")])
    assert play(mdp, [])[0].ended
    with pytest.raises(UsageError, match="begin"):
        mdp.step([Decision(WAIT, "")])
    with pytest.raises(UsageError, match="max_epochs|epochs"):
        replace(mdp.config, max_epochs=0)
