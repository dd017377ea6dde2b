"""Gates: pure functions of a seed's state and of thresholds. They decide; :class:`SeedSlot` moves.

A check whose evidence is missing fails as ``<id>_not_measured``; a NaN passes no comparison.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Final

from esper.kasmina.birth import MIXING_TOLERANCE, Birth
from esper.kasmina.state import Incubation, SeedState
from esper.leyline import (
    GATE_FOR,
    GateCheck,
    GateLevel,
    GateResult,
    GateThresholds,
    Paired,
    SeedStage,
    UsageError,
)
from esper.leyline.gates import Comparison


def _at_least(measured: Any, threshold: Any) -> bool:
    """Differences of means in another unit may miss by the last bits a threshold that they meet."""
    if isinstance(measured, float) and math.isclose(measured, threshold, rel_tol=1e-9):
        return True
    return bool(measured >= threshold)


_COMPARE: Final[MappingProxyType[Comparison, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        ">=": _at_least,
        ">": operator.gt,
        "<=": operator.le,
        "<": operator.lt,
        "==": operator.eq,
        "is": operator.eq,
    }
)


def check(
    id: str,
    measured: float | bool | str | None,
    comparison: Comparison,
    threshold: float | bool | str,
    unit: str | None = None,
) -> GateCheck:
    """Compare; nothing measured fails."""
    passed = measured is not None and _COMPARE[comparison](measured, threshold)
    return GateCheck(id, measured, comparison, threshold, passed, unit)


def verdict(gate: GateLevel | None, checks: Sequence[GateCheck], message: str | None = None) -> GateResult:
    """Sum up ``checks``; the gate passes when all of them do."""
    failed = tuple(each.summary() for each in checks if not each.passed)
    name = gate.name if gate is not None else "move"
    return GateResult(
        gate=gate,
        passed=not failed,
        checks_passed=tuple(each.summary() for each in checks if each.passed),
        checks_failed=failed,
        score=1.0 - len(failed) / len(checks),
        message=message or (f"{name} failed: {', '.join(failed)}" if failed else f"{name} passed"),
        checks=tuple(checks),
    )


def evaluate_birth(state: SeedState, birth: Birth, parameter_budget: int | None = None) -> GateResult:
    """G0: the seed is named, runs, keeps the shape, gives finite numbers, can learn, mixes nothing that the host keeps
    apart, and fits the budget.

    ``parameter_budget`` is how many parameters this seed may have, ``None`` for any number.
    """
    checks = [
        check("ids", bool(state.seed_id and state.blueprint_id and state.slot_id), "is", True),
        check("forward", birth.error or "ran", "is", "ran"),
        check("shape", birth.output_shape, "is", birth.due_shape),
        check("finite_output", birth.finite, "is", True),
        check("learning_tensors", birth.learning_tensors, ">=", 1),
        *(check(name, value, "<=", MIXING_TOLERANCE) for name, value in birth.mixing),
    ]
    if parameter_budget is not None:
        checks.append(check("parameters", birth.parameters, "<=", parameter_budget))
    return verdict(GateLevel.G0, checks)


def evaluate_gate(
    state: SeedState, target: SeedStage, thresholds: GateThresholds | None = None, *, seed_present: bool = True
) -> GateResult:
    """The gate before ``target`` (G1, G2, G3 or G5). Raises ``UsageError`` where no such gate stands."""
    level = GATE_FOR.get(target)
    if level not in _CHECKS:
        raise UsageError(f"no gate of a living seed stands before {target.name}")
    origin, evidence = _CHECKS[level]
    checks = [
        check("stage", state.stage.name, "is", origin.name),
        check("seed_present", seed_present, "is", True),
        *evidence(state, thresholds or GateThresholds()),
    ]
    return verdict(level, checks)


def _train(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    return []


def _blend(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    """G2: the seed has trained long enough, in isolation if it is meant to, with healthy gradients, and would help."""
    metrics = state.metrics
    evidence = "removal_cost_loss" if state.incubation is Incubation.GRAFT else "probe_gain_loss"
    return [
        check("training_epochs", state.epochs_in_stage, ">=", thresholds.min_training_epochs, "epochs"),
        *(_certain_gain(state, evidence, thresholds) if thresholds.ask_for_gain else ()),
        *(
            [check("gradient_ratio", metrics.seed_gradient_norm_ratio, ">=", thresholds.min_gradient_ratio)]
            if state.host_learns
            else ()
        ),
        check("gradient_health", state.telemetry.gradient_health, ">=", thresholds.min_gradient_health),
        *(
            [check("isolation_violations", metrics.isolation_violations, "<=", thresholds.max_isolation_violations)]
            if state.isolated_epochs
            else ()
        ),
    ]


def _hold(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    """G3: the ramp has arrived and the host has survived it."""
    loss = state.metrics.loss
    return [
        check("ramp_step", state.ramp_step, ">=", state.tempo, "epochs"),
        check("blending_epochs", state.epochs_in_stage, ">=", state.tempo, "epochs"),
        check("loss_finite", None if loss is None else math.isfinite(loss), "is", True),
    ]


def _fossilize(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    """G5: without the seed the host would be worse, by enough and with confidence."""
    return [
        check("holding_epochs", state.epochs_in_stage, ">=", thresholds.min_holding_epochs, "epochs"),
        *(_removal_costs(state, thresholds) if thresholds.ask_for_gain else ()),
        check("gradient_health", state.telemetry.gradient_health, ">=", thresholds.min_gradient_health),
    ]


def _removal_costs(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    metrics = state.metrics
    return [
        *removal_checks(metrics.removal_cost, metrics.removal_cost_loss, thresholds),
        *_of_this_stage(state, "removal_cost_loss"),
        *_of_this_stage(state, "removal_cost"),
    ]


def removal_checks(cost: Paired | None, cost_loss: Paired | None, thresholds: GateThresholds) -> list[GateCheck]:
    """What G5 asks of a seed's worth. The loss goes first: it tells more than a metric that counts, in any unit."""
    least = thresholds.least_removal_cost(0.0 if cost is None else cost.se)
    return [
        certain_gain("removal_cost_loss", cost_loss, thresholds),
        check("removal_cost", None if cost is None else cost.value, ">=", least, thresholds.unit),
        certain_gain("removal_cost", cost, thresholds, thresholds.unit),
    ]


def certain_gain(name: str, value: Paired | None, thresholds: GateThresholds, unit: str | None = None) -> GateCheck:
    """The lower confidence bound of a paired difference is above 0."""
    return check(f"{name}_lower", None if value is None else value.lower(thresholds.confidence_z), ">", 0.0, unit)


def _certain_gain(state: SeedState, fact: str, thresholds: GateThresholds) -> list[GateCheck]:
    """The lower confidence bound of ``fact`` is above 0, and the fact is of this stage."""
    return [certain_gain(fact, getattr(state.metrics, fact), thresholds), *_of_this_stage(state, fact)]


def _of_this_stage(state: SeedState, fact: str) -> list[GateCheck]:
    """Evidence from before the stage speaks of another alpha. A slot without a clock has no ages to compare."""
    if state.stage_epoch is None or getattr(state.metrics, fact) is None:
        return []
    return [check(f"{fact}_epoch", getattr(state.metrics, f"{fact}_epoch"), ">=", state.stage_epoch)]


_CHECKS: Final[
    MappingProxyType[GateLevel | None, tuple[SeedStage, Callable[[SeedState, GateThresholds], list[GateCheck]]]]
] = MappingProxyType(
    {
        GateLevel.G1: (SeedStage.GERMINATED, _train),
        GateLevel.G2: (SeedStage.TRAINING, _blend),
        GateLevel.G3: (SeedStage.BLENDING, _hold),
        GateLevel.G5: (SeedStage.HOLDING, _fossilize),
    }
)
