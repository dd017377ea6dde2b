"""What rules foresee is what gates decide: by one definition, whatever the metric's unit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from env_views import live_slot, row_view
from esper.kasmina.gates import evaluate_gate
from esper.kasmina.state import SeedState
from esper.leyline import Fact, GateThresholds, Metric, Paired, SeedStage
from esper.tamiyo.policies.evidence import before_blending, before_fossilizing

METRICS = (
    Metric("accuracy", "%", low=0.0, high=100.0),
    Metric("accuracy", "", low=0.0, high=1.0),
    Metric("error", "", higher_is_better=False, low=0.0, high=1.0),
    Metric("squared error", "m²", higher_is_better=False),
)
paired = st.builds(Paired, st.floats(-3.0, 3.0), st.floats(0.0, 1.0), st.just(300))
numbers = st.floats(0.0, 1.0)


def thresholds(metric: Metric, least: float, asked: bool) -> GateThresholds:
    return GateThresholds(min_removal_cost=least, ask_for_gain=asked, metric=metric)


@given(st.sampled_from(METRICS), st.floats(0.0, 0.1), st.booleans(), paired, paired, numbers, st.integers(0, 4))
def test_before_it_is_kept(
    metric: Metric, least: float, asked: bool, cost: Paired, cost_loss: Paired, health: float, epochs: int
) -> None:
    gates = thresholds(metric, least, asked)
    slot = live_slot(
        "slot0",
        SeedStage.HOLDING,
        alpha=1.0,
        epochs_in_stage=epochs,
        removal_cost=Fact(cost, 3),
        removal_cost_loss=Fact(cost_loss, 3),
        gradient_health=Fact(health, 3),
    )
    state = SeedState("s", "norm", "slot0", stage=SeedStage.HOLDING, epochs_in_stage=epochs)
    state.metrics.removal_cost, state.metrics.removal_cost_loss = cost, cost_loss
    state.telemetry.gradient_health = health
    foreseen = before_fossilizing(row_view(slot, gates=gates), slot).against is None
    assert foreseen == evaluate_gate(state, SeedStage.FOSSILIZED, gates).passed


@given(st.sampled_from(METRICS), st.booleans(), paired, st.none() | numbers, numbers, st.integers(0, 5), st.booleans())
def test_before_it_is_blended_in(
    metric: Metric, asked: bool, gain: Paired, ratio: float | None, health: float, epochs: int, host_learns: bool
) -> None:
    gates = thresholds(metric, 0.005, asked)
    slot = live_slot(
        "slot0",
        SeedStage.TRAINING,
        epochs_in_stage=epochs,
        probe_gain_loss=Fact(gain, 3),
        gradient_ratio=None if ratio is None else Fact(ratio, 3),
        host_learns=host_learns,
        gradient_health=Fact(health, 3),
        isolation_violations=0,
    )
    state = SeedState("s", "norm", "slot0", stage=SeedStage.TRAINING, epochs_in_stage=epochs, host_learns=host_learns)
    state.metrics.probe_gain_loss, state.metrics.seed_gradient_norm_ratio = gain, ratio
    state.metrics.isolation_violations, state.telemetry.gradient_health = 0, health
    foreseen = before_blending(row_view(slot, gates=gates), slot).against is None
    assert foreseen == evaluate_gate(state, SeedStage.BLENDING, gates).passed
