"""Gates: each check can fail alone, nothing unmeasured passes, NaN passes nothing, and the state is left alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.birth import Birth
from esper.kasmina.gates import evaluate_birth, evaluate_gate
from esper.kasmina.state import Incubation, SeedState
from esper.leyline import GateLevel, GateResult, GateThresholds, Metric, Paired, SeedStage, UsageError

PERCENT = Metric("accuracy", "%", low=0.0, high=100.0)
GAIN = Paired(value=0.3, se=0.1, n=300)
UNCERTAIN = Paired(value=0.1, se=0.1, n=300)


def ready(target: SeedStage) -> SeedState:
    """A state that passes the gate before ``target``."""
    state = SeedState(seed_id="s", blueprint_id="norm", slot_id="a")
    state.stage = SeedStage(target - 1)
    state.stage_epoch = 10
    state.epochs_in_stage = 3
    state.ramp_step = state.tempo = 3
    facts: dict[str, Any] = {
        "probe_gain_loss": GAIN,
        "removal_cost": Paired(2.0, 0.5, 300),
        "removal_cost_loss": GAIN,
        "seed_gradient_norm_ratio": 0.5,
        "isolation_violations": 0,
        "loss": 1.0,
    }
    for name, value in facts.items():
        setattr(state.metrics, name, value)
        setattr(state.metrics, f"{name}_epoch", 12)
    state.telemetry.gradient_health = 0.9
    return state


GATED = (SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING, SeedStage.FOSSILIZED)


@pytest.mark.parametrize("target", GATED)
def test_a_ready_seed_passes_and_the_gate_changes_nothing(target: SeedStage) -> None:
    state = ready(target)
    before = copy.deepcopy(state)
    result = evaluate_gate(state, target)
    assert result and result.score == 1.0 and not result.checks_failed
    assert state == before


def test_a_graft_that_is_never_isolated_has_no_isolation_to_show() -> None:
    state = ready(SeedStage.BLENDING)
    state.metrics.isolation_violations = None
    state.incubation, state.detach_epochs = Incubation.GRAFT, 0
    assert evaluate_gate(state, SeedStage.BLENDING)
    state.detach_epochs = 1
    assert evaluate_gate(state, SeedStage.BLENDING).checks_failed == ("isolation_violations_not_measured",)


def broken(change: Callable[[SeedState], None], target: SeedStage) -> tuple[str, ...]:
    state = ready(target)
    change(state)
    result = evaluate_gate(state, target, GateThresholds(metric=PERCENT))
    assert not result.passed and result.score < 1.0
    assert result.checks_failed[0] in result.message
    return result.checks_failed


def metric(name: str, value: Any) -> Callable[[SeedState], None]:
    return lambda state: setattr(state.metrics, name, value)


def health(value: float | None) -> Callable[[SeedState], None]:
    return lambda state: setattr(state.telemetry, "gradient_health", value)


def attribute(name: str, value: Any) -> Callable[[SeedState], None]:
    return lambda state: setattr(state, name, value)


@pytest.mark.parametrize(
    ("change", "target", "failed"),
    [
        (attribute("epochs_in_stage", 2), SeedStage.BLENDING, ("training_epochs=2",)),
        (metric("probe_gain_loss", None), SeedStage.BLENDING, ("probe_gain_loss_lower_not_measured",)),
        (metric("probe_gain_loss", UNCERTAIN), SeedStage.BLENDING, ("probe_gain_loss_lower=-0.09024",)),
        (metric("probe_gain_loss_epoch", 9), SeedStage.BLENDING, ("probe_gain_loss_epoch=9",)),
        (metric("probe_gain_loss_epoch", None), SeedStage.BLENDING, ("probe_gain_loss_epoch_not_measured",)),
        (metric("seed_gradient_norm_ratio", None), SeedStage.BLENDING, ("gradient_ratio_not_measured",)),
        (metric("seed_gradient_norm_ratio", 0.04), SeedStage.BLENDING, ("gradient_ratio=0.04",)),
        (metric("seed_gradient_norm_ratio", math.nan), SeedStage.BLENDING, ("gradient_ratio=nan",)),
        (health(None), SeedStage.BLENDING, ("gradient_health_not_measured",)),
        (health(0.6), SeedStage.BLENDING, ("gradient_health=0.6",)),
        (metric("isolation_violations", None), SeedStage.BLENDING, ("isolation_violations_not_measured",)),
        (metric("isolation_violations", 1), SeedStage.BLENDING, ("isolation_violations=1",)),
        (attribute("ramp_step", 2), SeedStage.HOLDING, ("ramp_step=2",)),
        (attribute("epochs_in_stage", 2), SeedStage.HOLDING, ("blending_epochs=2",)),
        (metric("loss", None), SeedStage.HOLDING, ("loss_finite_not_measured",)),
        (metric("loss", math.inf), SeedStage.HOLDING, ("loss_finite=False",)),
        (attribute("epochs_in_stage", 1), SeedStage.FOSSILIZED, ("holding_epochs=1",)),
        (metric("removal_cost", Paired(0.3, 0.1, 300)), SeedStage.FOSSILIZED, ("removal_cost_upper=0.4645",)),
        (metric("removal_cost", None), SeedStage.FOSSILIZED, ("removal_cost_upper_not_measured",)),
        (metric("removal_cost_loss", Paired(-0.1, 0.1, 9)), SeedStage.FOSSILIZED, ("removal_cost_loss_lower=-0.3242",)),
        (metric("removal_cost_loss", UNCERTAIN), SeedStage.FOSSILIZED, ("removal_cost_loss_lower=-0.1242",)),
        (metric("removal_cost_epoch", 3), SeedStage.FOSSILIZED, ("removal_cost_epoch=3",)),
        (health(math.nan), SeedStage.FOSSILIZED, ("gradient_health=nan",)),
        (attribute("stage", SeedStage.TRAINING), SeedStage.FOSSILIZED, ("stage=TRAINING",)),
    ],
)
def test_each_check_fails_by_itself(
    change: Callable[[SeedState], None], target: SeedStage, failed: tuple[str, ...]
) -> None:
    assert broken(change, target) == failed


@pytest.mark.parametrize("target", GATED[1:])
def test_a_fresh_seed_has_no_evidence_and_passes_nothing(target: SeedStage) -> None:
    state = SeedState(seed_id="s", blueprint_id="norm", slot_id="a", stage=SeedStage(target - 1), epochs_in_stage=99)
    result = evaluate_gate(state, target)
    assert not result
    assert all(each.measured is None or each.id == "ramp_step" for each in result.checks if not each.passed)


def test_no_seed_no_gate() -> None:
    assert evaluate_gate(ready(SeedStage.TRAINING), SeedStage.TRAINING, seed_present=False).checks_failed == (
        "seed_present=False",
    )


def test_a_grafted_seed_is_judged_by_what_its_removal_costs() -> None:
    state = ready(SeedStage.BLENDING)
    state.incubation, state.alpha = Incubation.GRAFT, 1.0
    state.metrics.probe_gain_loss = None
    assert evaluate_gate(state, SeedStage.BLENDING)
    state.metrics.removal_cost_loss = UNCERTAIN
    assert not evaluate_gate(state, SeedStage.BLENDING)


def test_a_slot_without_a_clock_compares_no_ages() -> None:
    state = ready(SeedStage.BLENDING)
    state.stage_epoch = state.metrics.probe_gain_loss_epoch = None
    assert evaluate_gate(state, SeedStage.BLENDING)


@pytest.mark.parametrize("target", [SeedStage.GERMINATED, SeedStage.PRUNED, SeedStage.DORMANT])
def test_where_no_gate_stands(target: SeedStage) -> None:
    with pytest.raises(UsageError):
        evaluate_gate(ready(SeedStage.BLENDING), target)


def born(**changes: Any) -> GateResult:
    facts = {
        "parameters": 100,
        "due_shape": "(4, 8)",
        "output_shape": "(4, 8)",
        "finite": True,
        "learning_tensors": 2,
    }
    return evaluate_birth(SeedState("s", "norm", "a"), Birth(**(facts | changes)), parameter_budget=100)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, ()),
        ({"output_shape": "(4, 9)"}, ("shape=(4, 9)",)),
        ({"finite": False}, ("finite_output=False",)),
        ({"learning_tensors": 0}, ("learning_tensors=0",)),
        ({"parameters": 101}, ("parameters=101",)),
        (
            {"error": "RuntimeError: no", "output_shape": None, "finite": None, "learning_tensors": None},
            (
                "forward=RuntimeError: no",
                "shape_not_measured",
                "finite_output_not_measured",
                "learning_tensors_not_measured",
            ),
        ),
    ],
)
def test_birth(changes: dict[str, Any], failed: tuple[str, ...]) -> None:
    result = born(**changes)
    assert result.gate is GateLevel.G0
    assert result.checks_failed == failed
    assert result.passed is (not failed)


def test_a_seed_without_a_name_is_not_born() -> None:
    result = evaluate_birth(SeedState("", "norm", "a"), Birth(1, "(4, 8)", "(4, 8)", True, 2))
    assert result.checks_failed == ("ids=False",)


def test_thresholds_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        GateThresholds(min_holding_epochs=-1)
    with pytest.raises(UsageError, match="a share of the metric's scale, from 0 to 1"):
        GateThresholds(min_removal_cost=2.0)
    with pytest.raises(UsageError, match="min_gradient_health is 7.0; health is from 0 to 1"):
        GateThresholds(min_gradient_health=7.0)
    with pytest.raises(UsageError, match="confidence_z is nan; it must be 0 or more"):
        GateThresholds(confidence_z=float("nan"))


def keeps(cost: Paired, loss: Paired, scale: Metric | None) -> tuple[bool, ...]:
    """Which checks of G5 pass."""
    state = ready(SeedStage.FOSSILIZED)
    state.metrics.removal_cost, state.metrics.removal_cost_loss = cost, loss
    result = evaluate_gate(state, SeedStage.FOSSILIZED, GateThresholds(metric=scale))
    return tuple(each.passed for each in result.checks)


@given(right=st.integers(0, 400), wrong=st.integers(0, 400), se=st.integers(0, 40))
def test_a_unit_decides_nothing(right: int, wrong: int, se: int) -> None:
    """400 examples: percent, fraction and error are judged alike, also on the threshold itself."""
    percent = keeps(Paired(100 * right / 400 - 100 * wrong / 400, 100 * se / 400, 400), GAIN, PERCENT)
    fraction = keeps(Paired(right / 400 - wrong / 400, se / 400, 400), GAIN, Metric("accuracy", "", low=0.0, high=1.0))
    error = Metric("error", "", higher_is_better=False, low=0.0, high=1.0)
    assert percent == fraction
    assert percent == keeps(Paired((1 - wrong / 400) - (1 - right / 400), se / 400, 400), GAIN, error)


@given(st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.floats(1e-3, 1e3))
def test_without_a_scale_the_noise_of_the_difference_is_the_measure(value: float, se: float, unit: float) -> None:
    scale = Metric("loss", "nats")
    one, other = (keeps(Paired(value * each, se * each, 300), GAIN, scale) for each in (1.0, unit))
    assert one == other or math.isclose(-value, 1.645 * se, rel_tol=1e-9, abs_tol=1e-300)


def test_what_must_be_lost_is_told_in_the_unit_of_the_metric() -> None:
    state = ready(SeedStage.FOSSILIZED)
    for scale, least in ((PERCENT, 0.5), (Metric("accuracy", "", low=0.0, high=1.0), 0.005), (None, 0.0)):
        checks = evaluate_gate(state, SeedStage.FOSSILIZED, GateThresholds(metric=scale)).checks
        (cost,) = [each for each in checks if each.id == "removal_cost_upper"]
        assert cost.threshold == pytest.approx(least) and cost.unit == (scale.unit if scale else None)


def test_the_loss_proves_and_the_metric_guards() -> None:
    """200 examples: a metric that can say nothing either way keeps no seed out, one that says no does."""
    unclear, worse = Paired(0.0, 2.5, 200), Paired(-5.0, 2.5, 200)
    assert all(keeps(unclear, GAIN, PERCENT)) and not all(keeps(worse, GAIN, PERCENT))
    assert not all(keeps(Paired(9.0, 2.5, 200), UNCERTAIN, PERCENT))


def test_the_loss_is_asked_first() -> None:
    names = [each.id for each in evaluate_gate(ready(SeedStage.FOSSILIZED), SeedStage.FOSSILIZED).checks]
    costs = [name for name in names if name.startswith("removal_cost") and not name.endswith("_epoch")]
    assert costs == ["removal_cost_loss_lower", "removal_cost_upper"]


def test_the_more_looks_the_more_is_asked() -> None:
    sure_once = Paired(0.2, 0.1, 300)  # 2.0 standard errors
    state = ready(SeedStage.FOSSILIZED)
    state.metrics.removal_cost_loss = sure_once
    state.epochs_in_stage = 2
    assert evaluate_gate(state, SeedStage.FOSSILIZED)
    state.epochs_in_stage = 3
    assert not evaluate_gate(state, SeedStage.FOSSILIZED)
    state.epochs_in_stage, state.metrics.removal_cost_loss = 2, Paired(0.2, 0.1, 300, read=0.5)
    assert not evaluate_gate(state, SeedStage.FOSSILIZED)
