"""Gates: pure functions of a seed's state and of thresholds. They decide; :class:`SeedSlot` moves.

What a seed must show before it is blended in and kept is defined in :mod:`esper.kasmina.evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

from esper.kasmina.birth import MIXING_TOLERANCE, Birth
from esper.kasmina.evidence import Shown, before_blending, before_fossilizing, check
from esper.kasmina.state import SeedState
from esper.leyline import (
    GATE_FOR,
    GateCheck,
    GateLevel,
    GateResult,
    GateThresholds,
    SeedStage,
    UsageError,
)


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
    return before_blending(Shown.of_state(state), thresholds)


def _hold(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    """G3: the ramp has arrived and the host has survived it."""
    loss = state.metrics.loss
    return [
        check("ramp_step", state.ramp_step, ">=", state.tempo, "epochs"),
        check("blending_epochs", state.epochs_in_stage, ">=", state.tempo, "epochs"),
        check("loss_finite", None if loss is None else math.isfinite(loss), "is", True),
    ]


def _fossilize(state: SeedState, thresholds: GateThresholds) -> list[GateCheck]:
    return before_fossilizing(Shown.of_state(state), thresholds)


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
