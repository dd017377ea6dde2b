"""What rules foresee is what gates decide: by one definition, whatever the metric's unit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from env_views import live_slot, measured, row_view
from esper.kasmina.evidence import Shown, Standing, worth
from esper.kasmina.gates import evaluate_gate
from esper.kasmina.slot import EventStamp, SeedSlot
from esper.kasmina.state import Incubation
from esper.leyline import Fact, GateThresholds, Metric, Paired, SeedStage, SlotView
from esper.tamiyo.policies.evidence import foreseen

METRICS = (
    Metric("accuracy", "%", low=0.0, high=100.0),
    Metric("accuracy", "", low=0.0, high=1.0),
    Metric("error", "", higher_is_better=False, low=0.0, high=1.0),
    Metric("squared error", "m²", higher_is_better=False),
)
paired = st.none() | st.builds(
    Paired, st.floats(-3.0, 3.0), st.floats(0.0, 1.0), st.just(300), st.none() | st.floats(0.01, 1.0)
)
numbers = st.none() | st.floats(0.0, 1.0)
gates = st.builds(
    GateThresholds,
    min_removal_cost=st.floats(0.0, 0.1),
    ask_for_gain=st.booleans(),
    metric=st.none() | st.sampled_from(METRICS),
)


def seed(stage: SeedStage) -> SeedSlot:
    """A slot with a seed in a stage that was entered after epoch 4."""
    slot = SeedSlot("slot0", channels=4)
    slot.germinate("norm")
    slot.stamp = EventStamp(epoch=4)
    assert slot.state is not None
    slot.state.enter(stage, 4)
    slot.state.alpha = float(stage is SeedStage.HOLDING)
    return slot


@given(st.sampled_from((SeedStage.TRAINING, SeedStage.HOLDING)), gates, st.data())
def test_what_rules_foresee_is_what_the_gate_decides(
    stage: SeedStage, thresholds: GateThresholds, data: st.DataObject
) -> None:
    """Also where the clock has gone on without the seed, as after a rollback, and whatever was not measured."""
    slot = seed(stage)
    assert slot.state is not None
    for fact, values in (
        ("probe_gain_loss", paired),
        ("removal_cost_loss", paired),
        ("removal_cost", paired),
        ("gradient_ratio", numbers),
        ("gradient_health", numbers),
        ("isolation_violations", st.none() | st.integers(0, 1)),
    ):
        slot.stamp = EventStamp(epoch=data.draw(st.none() | st.integers(2, 8)))
        slot.record(**{fact: data.draw(values)})
    slot.state.epochs_in_stage = data.draw(st.integers(0, 6))
    slot.state.host_learns = data.draw(st.booleans())
    slot.state.incubation, slot.state.detach_epochs = (
        data.draw(st.sampled_from(Incubation)),
        data.draw(st.integers(0, 1)),
    )
    view = slot.view()
    verdict, name = foreseen(row_view(view, gates=thresholds, epoch=data.draw(st.integers(4, 12))), view)
    result = evaluate_gate(slot.state, SeedStage(stage + 1), thresholds)
    assert (verdict.against is None) == result.passed
    assert result.gate is not None and name == result.gate.name


def holding(loss: Paired | None, cost: Paired | None, epoch: int = 3) -> SlotView:
    return live_slot(
        "slot0",
        SeedStage.HOLDING,
        alpha=1.0,
        removal_cost=None if cost is None else Fact(cost, epoch),
        removal_cost_loss=None if loss is None else Fact(loss, epoch),
    )


SURE, UNSURE, HARM = Paired(0.5, 0.1, 300), Paired(0.1, 0.1, 300), Paired(-0.5, 0.1, 300)


@pytest.mark.parametrize(
    ("slot", "standing", "reason"),
    [
        (holding(SURE, Paired(5.0, 1.0, 300)), Standing.PROVEN, "proven"),
        (holding(UNSURE, Paired(5.0, 1.0, 300)), Standing.OPEN, "lower bound of the removal cost in loss"),
        (holding(None, None), Standing.OPEN, "lower bound of the removal cost in loss"),
        (holding(SURE, Paired(5.0, 1.0, 300), epoch=0), Standing.OPEN, "removal cost loss epoch"),
        (holding(HARM, Paired(5.0, 1.0, 300)), Standing.REFUTED, "the host would be better without it"),
        (holding(HARM, Paired(5.0, 1.0, 300), epoch=0), Standing.OPEN, "lower bound of the removal cost in loss"),
        (holding(Paired(math.nan, 0.1, 300), None), Standing.REFUTED, "its removal_cost_loss is nan"),
        (
            live_slot("slot0", SeedStage.TRAINING, probe_gain_loss=measured(-0.5, 0.1)),
            Standing.OPEN,
            "probe_gain_loss, by its lower bound",
        ),
        (live_slot("slot0", SeedStage.TRAINING, probe_gain_loss=measured(0.5, 0.1)), Standing.PROVEN, "proven"),
        (live_slot("slot0", SeedStage.BLENDING), Standing.OPEN, "nothing is asked of a seed in BLENDING"),
    ],
)
def test_a_standing_and_its_reason(slot: SlotView, standing: Standing, reason: str) -> None:
    found = worth(Shown.of_view(slot), GateThresholds(metric=METRICS[0]))
    assert (found.standing, found.reason) == (standing, reason)


def test_where_no_gain_is_asked_for_none_is_proven_by_it() -> None:
    found = worth(Shown.of_view(holding(None, None)), GateThresholds(ask_for_gain=False))
    assert found.standing is Standing.PROVEN and not found.checks
