"""Seed state: nothing measured at birth, exact ramps, and a round trip through JSON that loses nothing."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.state import GrowthPlan, Incubation, SeedMetrics, SeedState, SeedTelemetry
from esper.leyline import Blend, DataError, Paired, SeedStage, UsageError

numbers = st.floats(width=64)
epochs = st.none() | st.integers(0, 10_000)
pairs = st.builds(Paired, numbers, numbers, st.integers(1, 10_000))


def _maybe(kind: type, **given: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    facts = {
        each.name: epochs if each.name.endswith("_epoch") else st.none() | given.get(each.name, numbers)
        for each in fields(kind)
    }
    return st.builds(kind, **facts)


metrics = _maybe(
    SeedMetrics,
    isolation_violations=st.integers(0, 100),
    removal_cost=pairs,
    removal_cost_loss=pairs,
    probe_gain=pairs,
    probe_gain_loss=pairs,
)
telemetry = _maybe(SeedTelemetry, has_vanishing=st.booleans(), has_exploding=st.booleans())
states = st.builds(
    SeedState,
    seed_id=st.text(min_size=1),
    blueprint_id=st.text(min_size=1),
    slot_id=st.text(),
    stage=st.sampled_from(SeedStage),
    incubation=st.sampled_from(Incubation),
    parameters=st.none() | st.integers(0, 10**9),
    alpha=st.floats(0, 1),
    alpha_from=st.floats(0, 1),
    alpha_target=st.floats(0, 1),
    blend=st.sampled_from(Blend),
    tempo=st.integers(1, 50),
    ramp_step=st.integers(0, 50),
    epochs_in_stage=st.integers(0, 500),
    stage_epoch=epochs,
    age_epochs=st.integers(0, 500),
    blocked_by=st.lists(st.text()).map(tuple),
    history=st.lists(st.tuples(epochs, st.sampled_from(SeedStage).map(lambda stage: stage.name))),
    metrics=metrics,
    telemetry=telemetry,
)


@given(state=states)
def test_round_trip_through_json(state: SeedState) -> None:
    written = json.dumps(state.to_dict(), allow_nan=False)
    assert repr(SeedState.from_dict(json.loads(written))) == repr(state)  # repr, since NaN differs from itself


def test_nothing_is_measured_at_birth() -> None:
    state = SeedState(seed_id="s", blueprint_id="norm")
    for part in (state.metrics, state.telemetry):
        assert all(getattr(part, each.name) is None for each in fields(part))


@pytest.mark.parametrize("part", [(), ("metrics",), ("telemetry",)])
def test_a_state_with_an_unknown_or_missing_key_is_refused(part: tuple[str, ...]) -> None:
    good = SeedState(seed_id="s", blueprint_id="norm").to_dict()
    for damage in ("unknown", "missing"):
        bad = json.loads(json.dumps(good))
        owner = bad[part[0]] if part else bad
        if damage == "unknown":
            owner["surprise"] = 1
        else:
            owner.popitem()
        with pytest.raises(DataError):
            SeedState.from_dict(bad)


@pytest.mark.parametrize(("key", "value"), [("stage", "ASLEEP"), ("blend", "square"), ("metrics", 3), ("history", 1)])
def test_a_state_of_the_wrong_kind_is_refused(key: str, value: object) -> None:
    with pytest.raises(DataError):
        SeedState.from_dict(SeedState(seed_id="s", blueprint_id="norm").to_dict() | {key: value})


@given(blend=st.sampled_from(Blend), tempo=st.integers(1, 20), target=st.floats(0, 1), start=st.floats(0, 1))
def test_a_ramp_takes_tempo_epochs_and_lands_on_its_target(
    blend: Blend, tempo: int, target: float, start: float
) -> None:
    state = SeedState(seed_id="s", blueprint_id="norm", alpha=start)
    state.begin_ramp(target, tempo, blend)
    epochs = 1
    while not state.ramp_complete:
        state.step_ramp()
        epochs += 1
    assert (epochs, state.alpha, state.alpha_from) == (tempo, target, start)


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError):
        GrowthPlan(alpha_target=1.5)
