"""What a slot says of its seed: payloads in which a key is missing where nothing was measured."""

from __future__ import annotations

from typing import Any

from esper.kasmina.state import SeedState
from esper.leyline import GateResult, Paired, SeedStage

_CHECK_FIELDS = ("id", "measured", "comparison", "threshold", "passed", "unit")


def health_payload(state: SeedState) -> dict[str, Any]:
    """The keys of ``SlotHealth`` that are known."""
    metrics, telemetry = state.metrics, state.telemetry
    return _known(
        alpha=state.alpha,
        blueprint=state.blueprint_id,
        parameters=state.parameters,
        seed_gradient_norm_ratio=metrics.seed_gradient_norm_ratio,
        seed_gradient_norm_ratio_epoch=metrics.seed_gradient_norm_ratio_epoch,
        isolation_violations=metrics.isolation_violations,
        isolation_violations_epoch=metrics.isolation_violations_epoch,
        gradient_health=telemetry.gradient_health,
        gradient_health_epoch=telemetry.gradient_health_epoch,
        has_vanishing=telemetry.has_vanishing,
        has_exploding=telemetry.has_exploding,
        removal_cost=_value(metrics.removal_cost),
        removal_cost_epoch=metrics.removal_cost_epoch,
        probe_gain=_value(metrics.probe_gain),
        probe_gain_epoch=metrics.probe_gain_epoch,
    )


def gate_payload(result: GateResult, origin: SeedStage, target: SeedStage) -> dict[str, Any]:
    """``SEED_GATE_EVALUATED``: the verdict with every check's measured value and threshold."""
    assert result.gate is not None
    return {
        "gate": result.gate.name,
        "passed": result.passed,
        "from": origin.name,
        "target_stage": target.name,
        "checks_passed": list(result.checks_passed),
        "checks_failed": list(result.checks_failed),
        "message": result.message,
        "score": result.score,
        "checks": [_known(**{key: getattr(each, key) for key in _CHECK_FIELDS}) for each in result.checks],
    }


def fossil_payload(state: SeedState, unit: str | None) -> dict[str, Any]:
    """``SEED_FOSSILIZED``: what the seed was kept for; ``unit`` is that of the metric."""
    cost = state.metrics.removal_cost
    return _known(
        age_epochs=state.age_epochs,
        removal_cost_se=None if cost is None else cost.se,
        removal_cost_loss=_value(state.metrics.removal_cost_loss),
        unit=unit,
    )


def _value(measured: Paired | None) -> float | None:
    return None if measured is None else measured.value


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
