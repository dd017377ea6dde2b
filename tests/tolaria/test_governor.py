"""The governor: when it panics, what it goes back to, whom it blames, what it forbids, and what it says."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from env_views import live_slot, measured, row_view
from esper.leyline import (
    REGISTRY,
    WAIT,
    Blend,
    EnvView,
    EsperError,
    FactoredAction,
    Metric,
    Op,
    SeedStage,
    TelemetryEvent,
    TelemetryEventType,
)
from esper.tolaria.checkpoint import decode, encode
from esper.tolaria.governor import Governor, GovernorConfig, GovernorVerdict

T = TelemetryEventType
ACCURACY = Metric("accuracy", "%", higher_is_better=True, chance=10.0)
GERMINATE = FactoredAction(Op.GERMINATE, "slot0", "small", Blend.LINEAR, 1.0, 3)
ADVANCE = FactoredAction(Op.ADVANCE, "slot0")
PRUNE = FactoredAction(Op.PRUNE, "slot0")
FOSSILIZE = FactoredAction(Op.FOSSILIZE, "slot0")


class Run:
    """A run that is healthy unless told otherwise; its state is the epoch that it stands for."""

    def __init__(self, config: GovernorConfig | None = None) -> None:
        self.events: list[TelemetryEvent] = []
        self.governor = Governor(ACCURACY, config or GovernorConfig(snapshot_every=1), self.events.append, device="cpu")
        self.epoch = 0
        self.governor.keep(0, self.state())

    def state(self) -> dict[str, Any]:
        return {"tensors": {"w": torch.full((3,), float(self.epoch))}, "plain": {"of": self.epoch}}

    def train(
        self, loss: float = 0.5, metric: float | None = 80.0, *, finite: bool = True, acted: FactoredAction = WAIT
    ) -> GovernorVerdict:
        """One epoch; keeps the state where that is due."""
        self.epoch += 1
        verdict = self.governor.observe(
            self.epoch, train_loss=loss, val_loss=loss, metric=metric, weights_finite=finite, acted=acted
        )
        if verdict.ok and self.governor.snapshot_due(self.epoch):
            self.governor.keep(self.epoch, self.state(), loss=loss, metric=metric)
        return verdict

    def healthy(self, epochs: int) -> Run:
        for _ in range(epochs):
            assert self.train().ok
        return self

    def said(self, *kinds: TelemetryEventType) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.event_type in kinds]


def test_non_finite_loss_rolls_back_at_once_and_is_external() -> None:
    run = Run().healthy(7)
    verdict = run.train(loss=math.nan)
    assert (verdict.ok, verdict.reason, verdict.consecutive) == (False, "non_finite_loss", 1)
    back = run.governor.rollback(8)
    assert back is not None
    assert (back.state["plain"], back.to_epoch, back.lost_epochs) == ({"of": 7}, 7, 1)
    assert (back.cause, back.suspect, back.veto_epochs) == ("external", None, 0)


def test_non_finite_weights_panic_with_a_finite_loss() -> None:
    run = Run().healthy(2)
    assert run.train(finite=False) == GovernorVerdict(False, "non_finite_weights", None, None, 1)
    assert "measured" not in run.said(T.GOVERNOR_PANIC)[0]


def test_the_first_epoch_can_be_rolled_back_too() -> None:
    run = Run()
    assert not run.train(loss=math.inf).ok
    back = run.governor.rollback(1)
    assert back is not None and back.to_epoch == 0


def test_without_any_state_there_is_nothing_to_go_back_to() -> None:
    governor = Governor(ACCURACY)
    governor.observe(1, train_loss=math.nan, val_loss=None, metric=None, weights_finite=True)
    assert governor.rollback(1) is None
    with pytest.raises(ValueError, match="did not panic"):
        Governor(ACCURACY).rollback(1)


def test_one_uncertain_epoch_is_no_panic_but_is_not_kept() -> None:
    run = Run().healthy(8)
    bad = run.train(loss=1.4)
    assert bad.ok and bad.consecutive == 1 and bad.reason == "divergence"
    assert not run.governor.snapshot_due(run.epoch)
    with pytest.raises(ValueError, match="not judged healthy"):
        run.governor.keep(run.epoch, run.state())
    assert run.train(loss=0.5).consecutive == 0
    assert [run.train(loss=1.4).ok, run.train(loss=1.4).ok] == [True, False]
    back = run.governor.rollback(run.epoch)
    assert back is not None and back.to_epoch == run.epoch - 2


def test_collapse_to_chance() -> None:
    run = Run()
    for i in range(8):
        run.train(metric=80.0 + i % 2)
    verdict = run.train(metric=11.0)
    assert (verdict.ok, verdict.reason, verdict.measured) == (False, "collapse_to_chance", 11.0)
    assert verdict.threshold == pytest.approx(10 + 0.1 * 70, abs=0.2)


def test_snapshot_cadence() -> None:
    run = Run(GovernorConfig(snapshot_every=3)).healthy(10)
    assert [said["of_epoch"] for said in run.said(T.GOVERNOR_SNAPSHOT)] == [0, 3, 6, 9]
    assert run.said(T.GOVERNOR_SNAPSHOT)[1] == {"of_epoch": 3, "bytes": 12, "loss": 0.5, "metric": 80.0}
    run.train(loss=math.nan)
    back = run.governor.rollback(11)
    assert back is not None and (back.to_epoch, back.lost_epochs) == (9, 2)


def test_a_move_after_which_the_run_fails_twice_is_the_suspect() -> None:
    run = Run().healthy(6)
    run.train(loss=math.nan, acted=ADVANCE)
    first = run.governor.rollback(run.epoch)
    assert first is not None
    assert (first.cause, first.suspect) == ("external", None), "one panic proves nothing against the move before it"
    assert run.governor.preflight(row_view(live_slot("slot0", SeedStage.TRAINING)), ADVANCE) is None
    run.train(loss=math.nan, acted=ADVANCE)
    back = run.governor.rollback(run.epoch)
    assert back is not None
    assert (back.cause, back.suspect, back.veto_epochs) == ("internal", "slot0", 5)
    assert run.said(T.GOVERNOR_ROLLBACK)[1] | {"reason": "", "device": ""} == {
        "reason": "",
        "to_epoch": 6,
        "lost_epochs": 2,
        "consecutive_panics": 1,
        "rollbacks": 1,
        "cause": "internal",
        "suspect": "ADVANCE slot0",
        "vetoed_epochs": 5,
        "device": "",
    }


def test_a_move_that_was_first_made_after_a_panic_does_not_answer_for_it() -> None:
    run = Run().healthy(6)
    run.train(loss=math.nan)
    run.governor.rollback(run.epoch)
    run.train()
    run.train(loss=math.nan, acted=ADVANCE)
    back = run.governor.rollback(run.epoch)
    assert back is not None and (back.cause, back.suspect) == ("internal", None)


@pytest.mark.parametrize(
    ("again", "loss", "cause"),
    [
        (ADVANCE, math.nan, "internal"),
        (FactoredAction(Op.ADVANCE, "slot1"), math.nan, "external"),
        (GERMINATE, math.nan, "external"),
        (ADVANCE, 40.0, "external"),
        (WAIT, math.nan, "external"),
    ],
)
def test_long_after_it_is_the_suspect_only_where_move_and_reason_are_the_same(
    again: FactoredAction, loss: float, cause: str
) -> None:
    run = Run().healthy(6)
    run.train(loss=math.nan, acted=ADVANCE)
    run.governor.rollback(run.epoch)
    run.healthy(20)
    assert not run.train(loss=loss, acted=again).ok
    back = run.governor.rollback(run.epoch)
    assert back is not None and (back.cause, back.suspect is not None) == (cause, cause == "internal")


@pytest.mark.parametrize("innocent", [WAIT, FOSSILIZE])
def test_moves_that_change_no_output_are_not_suspected(innocent: FactoredAction) -> None:
    run = Run().healthy(6)
    run.train(loss=math.nan, acted=innocent)
    back = run.governor.rollback(7)
    assert back is not None and back.cause == "external"


def test_a_panic_that_recurs_is_internal_and_blames_the_last_move() -> None:
    run = Run().healthy(5)
    run.train(acted=ADVANCE)
    run.healthy(2)
    run.train(loss=math.nan)
    first = run.governor.rollback(run.epoch)
    run.train()
    run.train(loss=math.nan)
    second = run.governor.rollback(run.epoch)
    run.train(loss=math.nan)
    third = run.governor.rollback(run.epoch)
    assert first is not None and second is not None and third is not None
    assert (first.cause, first.suspect) == ("external", None)
    assert (second.cause, second.suspect) == ("internal", "slot0")
    assert (third.cause, third.suspect) == ("internal", None), "a suspect answers once"


def test_faults_far_apart_or_of_another_kind_stay_external() -> None:
    run = Run().healthy(5)
    run.train(acted=ADVANCE)
    run.healthy(2)
    run.train(loss=math.nan)
    run.governor.rollback(run.epoch)
    run.train(finite=False)
    back = run.governor.rollback(run.epoch)
    assert back is not None and back.cause == "external", "another reason"
    run.healthy(6)
    run.train(loss=math.nan)
    back = run.governor.rollback(run.epoch)
    assert back is not None and back.cause == "external", "too long ago"


def test_a_suspected_removal_is_vetoed_instead_of_quarantined() -> None:
    run = Run().healthy(6)
    for _ in range(2):
        run.train(loss=math.nan, acted=PRUNE)
        back = run.governor.rollback(run.epoch)
    assert back is not None and (back.cause, back.suspect) == ("internal", None)
    view = row_view(live_slot("slot0", SeedStage.HOLDING, alpha=0.3))
    assert "made the run fail before" in str(run.governor.preflight(view, PRUNE))
    run.healthy(5)
    assert run.governor.preflight(view, PRUNE) is None


def test_the_fourth_panic_fails_the_run_plainly() -> None:
    run = Run().healthy(6)
    for expected in (0, 1, 2):
        run.train(loss=math.nan)
        back = run.governor.rollback(run.epoch)
        assert back is not None and back.rollbacks == expected
    run.train(loss=math.nan)
    with pytest.raises(EsperError, match=r"epoch 10 after 3 rollbacks: non finite loss; .*that of epoch 6"):
        run.governor.rollback(run.epoch)
    assert [said["rollbacks"] for said in run.said(T.GOVERNOR_PANIC)] == [0, 1, 2, 3]
    assert [said["consecutive_panics"] for said in run.said(T.GOVERNOR_ROLLBACK)] == [1, 1, 1]


def view_with(**fields: Any) -> EnvView:
    return row_view(live_slot("slot0", SeedStage.HOLDING, alpha=1.0), **fields)


def test_preflight_is_silent_about_what_legality_judges() -> None:
    run = Run().healthy(6)
    for action in (WAIT, GERMINATE, ADVANCE, FOSSILIZE, FactoredAction(Op.PRUNE, "nowhere")):
        assert run.governor.preflight(view_with(), action) is None
    assert not run.said(T.TRANSITION_VETOED)


@pytest.mark.parametrize("field", ["loss", "metric", "train_loss"])
def test_nothing_grows_on_values_that_are_not_finite(field: str) -> None:
    run = Run().healthy(6)
    view = view_with(**{field: math.nan})
    for action in (GERMINATE, ADVANCE, FOSSILIZE):
        assert "is not finite" in str(run.governor.preflight(view, action))
    assert run.governor.preflight(view, PRUNE) is None, "the seed may be the reason"
    down = FactoredAction(Op.SET_ALPHA, "slot0", None, Blend.LINEAR, 0.5, 3)
    assert run.governor.preflight(view, down) is None


def test_nothing_grows_in_an_ill_epoch_or_after_an_internal_rollback() -> None:
    run = Run().healthy(8)
    run.train(loss=1.4)
    assert "was ill: divergence" in str(run.governor.preflight(view_with(), GERMINATE))
    run.train()
    assert run.governor.preflight(view_with(), GERMINATE) is None
    run.train(loss=math.nan)
    run.governor.rollback(run.epoch)
    assert run.governor.preflight(view_with(), GERMINATE) is None, "an external fault is no reason to wait"
    run.train(loss=math.nan)
    run.governor.rollback(run.epoch)
    assert "after the rollback" in str(run.governor.preflight(view_with(), GERMINATE))
    run.healthy(2)
    assert run.governor.preflight(view_with(), GERMINATE) is None


def test_a_seed_that_carries_the_run_is_not_pruned_blindly() -> None:
    run = Run()
    for i in range(8):
        run.train(loss=0.5 + 0.01 * (i % 2), metric=80.0 + i % 2)

    def prune(**facts: Any) -> str | None:
        slot = live_slot("slot0", SeedStage.HOLDING, **{"alpha": 1.0} | facts)
        return run.governor.preflight(row_view(slot, epoch=8, loss=0.5, metric=80.0), PRUNE)

    assert "was not measured" in str(prune())
    assert "was not measured" in str(prune(removal_cost=measured(0.1, epoch=4)))
    assert "was not measured" in str(prune(removal_cost=measured(0.1, epoch=None)))
    assert prune(removal_cost=measured(0.1, epoch=6), removal_cost_loss=measured(0.01, epoch=6)) is None
    assert "without it: collapse_to_chance" in str(prune(removal_cost=measured(66.0, epoch=8)))
    heavy = prune(removal_cost=measured(5.0, epoch=8), removal_cost_loss=measured(3.0, epoch=8))
    assert "without it: divergence (measured 3.5" in str(heavy)
    assert prune(alpha=0.5) is None, "ramped down far enough"
    assert Governor(ACCURACY, GovernorConfig(evidence_age=None)).preflight(view_with(), PRUNE) is None


def test_a_seed_that_holds_much_of_what_was_gained_is_not_pruned_while_losses_still_fall() -> None:
    """The vital signs forgive a young run everything: its loss moves by more than any single seed is worth."""
    run = Run()
    losses = [2.3, 2.29, 1.6, 0.9, 0.6]
    for loss in losses:
        run.train(loss=loss, metric=None)

    def prune(cost: float, se: float) -> str | None:
        facts = {"removal_cost": measured(1.0, epoch=5), "removal_cost_loss": measured(cost, se, epoch=5)}
        slot = live_slot("slot0", SeedStage.HOLDING, alpha=1.0, **facts)
        return run.governor.preflight(row_view(slot, epoch=5, loss=0.6, loss_history=tuple(losses)), PRUNE)

    # of the 1.7 that were gained, 0.17 is a tenth
    assert "it carries 15% of what the run has gained" in str(prune(0.26, 0.0))
    assert prune(0.16, 0.0) is None
    assert prune(0.26, 0.1) is None, "that is not certain"
    assert prune(-0.26, 0.0) is None


def test_a_veto_is_an_event_with_slot_and_reason() -> None:
    run = Run().healthy(3)
    run.governor.preflight(view_with(loss=math.inf), FOSSILIZE)
    (event,) = [event for event in run.events if event.event_type is T.TRANSITION_VETOED]
    assert (event.slot_id, event.seed_id, event.severity) == ("slot0", "slot0.1", "warning")
    assert event.data == {
        "from": "HOLDING",
        "target_stage": "FOSSILIZED",
        "op": "FOSSILIZE",
        "by": "governor",
        "reason": "validation loss is not finite",
        "alpha": 1.0,
        "blueprint": "large",
    }


def test_every_event_matches_its_contract() -> None:
    run = Run().healthy(8)
    run.governor.preflight(view_with(loss=math.inf), GERMINATE)
    run.train(loss=1e6, acted=ADVANCE)
    run.governor.rollback(run.epoch)
    run.train(loss=math.nan)
    run.governor.rollback(run.epoch)
    seen = {event.event_type for event in run.events}
    assert seen == {T.GOVERNOR_SNAPSHOT, T.GOVERNOR_PANIC, T.GOVERNOR_ROLLBACK, T.TRANSITION_VETOED}
    for event in run.events:
        contract = REGISTRY[event.event_type].payload
        msgspec.convert(event.data, contract)
        assert set(event.data) <= set(contract.__annotations__)


class Lives(RuleBasedStateMachine):
    """Random lives, with a checkpoint of the governor between any two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.run = Run(GovernorConfig(snapshot_every=2))
        self.healthy_epochs = {0}
        self.failed = False

    @rule(
        loss=st.sampled_from([0.5, 0.55, 0.6, 1.6, 40.0, math.nan, math.inf]),
        metric=st.sampled_from([80.0, 78.0, 10.0, None]),
        finite=st.sampled_from([True, True, True, False]),
        acted=st.sampled_from([WAIT, WAIT, ADVANCE, PRUNE, FOSSILIZE]),
    )
    def epoch(self, loss: float, metric: float | None, finite: bool, acted: FactoredAction) -> None:
        if self.failed:
            return
        verdict = self.run.train(loss, metric, finite=finite, acted=acted)
        bad = not finite or not math.isfinite(loss)
        assert not (bad and verdict.ok)
        if verdict.consecutive == 0:
            self.healthy_epochs.add(self.run.epoch)
        if verdict.ok:
            return
        before = self.run.governor.rollbacks
        if before == 3:
            with pytest.raises(EsperError, match="after 3 rollbacks"):
                self.run.governor.rollback(self.run.epoch)
            self.failed = True
            return
        back = self.run.governor.rollback(self.run.epoch)
        assert back is not None and back.lost_epochs == self.run.epoch - back.to_epoch > 0
        assert back.state["plain"]["of"] == back.to_epoch in self.healthy_epochs
        assert (back.rollbacks, self.run.governor.rollbacks) == (before, before + 1)
        assert (back.cause == "external") <= (back.suspect is None)

    @rule()
    def checkpoint(self) -> None:
        state = self.run.governor.state()
        copy = {"tensors": {k: v.clone() for k, v in state["tensors"].items()}, "plain": decode(encode(state["plain"]))}
        other = Governor(ACCURACY, GovernorConfig(snapshot_every=2), self.run.events.append, device="cpu")
        other.load(copy)
        assert repr(other.state()) == repr(state)
        self.run.governor = other

    @invariant()
    def counts_agree(self) -> None:
        panics, rollbacks = self.run.said(T.GOVERNOR_PANIC), self.run.said(T.GOVERNOR_ROLLBACK)
        assert len(panics) == len(rollbacks) + self.failed
        assert len(rollbacks) == self.run.governor.rollbacks <= 3
        for panic, rollback in zip(panics, rollbacks, strict=False):
            same = ("reason", "consecutive_panics", "rollbacks")
            assert [panic[key] for key in same] == [rollback[key] for key in same]


TestLives = Lives.TestCase
