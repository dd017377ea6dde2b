"""What a seed has shown, and what that says: its worth is proven, refuted, or open. The one definition of it.

Gates decide by it, policies foresee gates by it, and validation is read by it. A check whose evidence is missing fails
as ``<id>_not_measured``; a NaN passes no comparison.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from esper.kasmina.sequential import spent, standard_errors
from esper.kasmina.state import SeedState
from esper.leyline import Fact, GateCheck, GateThresholds, Paired, SeedStage, SlotFacts, SlotView
from esper.leyline.gates import Comparison

LEARNING: Final = 6
"""Looks at a seed that learns behind the host which spend equal shares of the error rate: it gets better meanwhile."""


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


def fact(owner: Any, name: str) -> Fact[Any] | None:
    """What ``owner`` holds under ``name``, with its age under ``<name>_epoch``; ``None`` where it was not measured."""
    value = getattr(owner, name)
    return None if value is None else Fact(value, getattr(owner, f"{name}_epoch"))


@dataclass(frozen=True, slots=True)
class Shown:
    """What was measured of a seed; ``None`` was not."""

    stage: SeedStage
    epochs_in_stage: int
    stage_epoch: int | None
    """Epoch in which the stage was entered; ``None`` without a clock, and then no ages are compared."""
    alpha: float
    host_learns: bool
    isolation_due: bool
    """Whether it must be shown that no gradient went from the seed to the host."""
    probe_gain_loss: Fact[Paired] | None
    removal_cost_loss: Fact[Paired] | None
    removal_cost: Fact[Paired] | None
    gradient_ratio: float | None
    gradient_health: float | None
    isolation_violations: int | None

    @classmethod
    def of_state(cls, state: SeedState) -> Shown:
        """As the slot knows it."""
        metrics = state.metrics
        return cls(
            stage=state.stage,
            epochs_in_stage=state.epochs_in_stage,
            stage_epoch=state.stage_epoch,
            alpha=state.alpha,
            host_learns=state.host_learns,
            isolation_due=state.isolated_epochs > 0,
            probe_gain_loss=fact(metrics, "probe_gain_loss"),
            removal_cost_loss=fact(metrics, "removal_cost_loss"),
            removal_cost=fact(metrics, "removal_cost"),
            gradient_ratio=metrics.seed_gradient_norm_ratio,
            gradient_health=state.telemetry.gradient_health,
            isolation_violations=metrics.isolation_violations,
        )

    @classmethod
    def of_view(cls, slot: SlotView) -> Shown:
        """As a policy sees it."""
        return cls(
            stage=slot.stage,
            epochs_in_stage=slot.epochs_in_stage,
            stage_epoch=slot.stage_epoch,
            alpha=slot.alpha,
            host_learns=slot.host_learns,
            isolation_due=slot.isolation_due,
            probe_gain_loss=slot.probe_gain_loss,
            removal_cost_loss=slot.removal_cost_loss,
            removal_cost=slot.removal_cost,
            gradient_ratio=None if slot.gradient_ratio is None else slot.gradient_ratio.value,
            gradient_health=None if slot.gradient_health is None else slot.gradient_health.value,
            isolation_violations=slot.isolation_violations,
        )

    def measured(self, facts: SlotFacts) -> Shown:
        """The same with what was just measured."""

        def fresh(name: str) -> Fact[Paired] | None:
            value: Paired | None = getattr(facts, name)
            return getattr(self, name) if value is None else Fact(value, self.stage_epoch)

        return replace(
            self,
            probe_gain_loss=fresh("probe_gain_loss"),
            removal_cost_loss=fresh("removal_cost_loss"),
            removal_cost=fresh("removal_cost"),
        )

    @property
    def gain(self) -> str:
        """The fact that says what the seed is worth in loss: measured by switching it on while it is off, and off
        while it is on."""
        return "removal_cost_loss" if self.alpha > 0.0 or self.stage is SeedStage.HOLDING else "probe_gain_loss"

    def far(self, thresholds: GateThresholds, read: float | None) -> float:
        """Standard errors that make a gain certain, of which the share ``read`` was read, after this epoch.

        Looks are counted from the first epoch of the stage after which its gate can pass.
        """
        training = self.stage is SeedStage.TRAINING
        least = thresholds.min_training_epochs if training else thresholds.min_holding_epochs
        look = max(1, self.epochs_in_stage - max(1, least) + 1)
        z, equal = (thresholds.blending_z, LEARNING) if training else (thresholds.confidence_z, 1)
        return standard_errors(z, spent(look, equal), read)

    def of_stage(self, name: str) -> Paired | None:
        """The fact, where it was measured within the present stage: earlier evidence speaks of another alpha."""
        found: Fact[Paired] | None = getattr(self, name)
        if found is None or (self.stage_epoch is not None and (found.epoch is None or found.epoch < self.stage_epoch)):
            return None
        return found.value


class Standing(StrEnum):
    """What the evidence says of a seed's worth."""

    PROVEN = "proven"
    OPEN = "open"
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True)
class Worth:
    """Standing, and why: the checks that it rests on, the first that is in the way in words."""

    standing: Standing
    reason: str
    checks: tuple[GateCheck, ...] = ()


def worth(shown: Shown, thresholds: GateThresholds) -> Worth:
    """Whether a seed is proven to be worth its next stage.

    In TRAINING that is a gain in loss behind the host, in HOLDING what the host would lose without it, by its lower
    bound: the loss of an example tells more than whether it was right. The metric is a guard: it must not rule out that
    the seed is worth as much as is asked. What is not finite, and what the host would certainly be better without, is
    refuted; a seed that still learns behind the host may have done harm there so far.
    """
    if shown.stage not in (SeedStage.TRAINING, SeedStage.HOLDING):
        return Worth(Standing.OPEN, f"nothing is asked of a seed in {shown.stage.name}")
    checks = tuple(_worth_checks(shown, thresholds)) if thresholds.ask_for_gain else ()
    gain = shown.of_stage(shown.gain)
    if gain is not None and not math.isfinite(gain.value):
        return Worth(Standing.REFUTED, f"its {shown.gain} is {gain.value}", checks)
    if shown.stage is SeedStage.HOLDING and gain is not None and gain.lower(-shown.far(thresholds, gain.read)) < 0.0:
        return Worth(Standing.REFUTED, "the host would be better without it", checks)
    against = next((each for each in checks if not each.passed), None)
    if against is None:
        return Worth(Standing.PROVEN, "proven", checks)
    return Worth(Standing.OPEN, in_words(against), checks)


def _worth_checks(shown: Shown, thresholds: GateThresholds) -> list[GateCheck]:
    if shown.stage is SeedStage.TRAINING:
        return [_certain_gain(shown, shown.gain, thresholds), *_of_this_stage(shown, shown.gain)]
    cost = None if shown.removal_cost is None else shown.removal_cost.value
    upper = None if cost is None else cost.lower(-thresholds.confidence_z)
    return [
        _certain_gain(shown, "removal_cost_loss", thresholds),
        check("removal_cost_upper", upper, ">=", thresholds.least_removal_cost, thresholds.unit),
        *_of_this_stage(shown, "removal_cost_loss"),
        *_of_this_stage(shown, "removal_cost"),
    ]


def _certain_gain(shown: Shown, name: str, thresholds: GateThresholds) -> GateCheck:
    """The lower bound of a paired difference is above 0, with all the looks that were taken at it."""
    found: Fact[Paired] | None = getattr(shown, name)
    lower = None if found is None else found.value.lower(shown.far(thresholds, found.value.read))
    return check(f"{name}_lower", lower, ">", 0.0)


def _of_this_stage(shown: Shown, name: str) -> list[GateCheck]:
    found: Fact[Paired] | None = getattr(shown, name)
    if found is None or shown.stage_epoch is None:
        return []
    return [check(f"{name}_epoch", found.epoch, ">=", shown.stage_epoch)]


def before_blending(shown: Shown, thresholds: GateThresholds) -> list[GateCheck]:
    """G2: the seed has trained long enough, in isolation if it is meant to, with healthy gradients, and would help."""
    return [
        check("training_epochs", shown.epochs_in_stage, ">=", thresholds.min_training_epochs, "epochs"),
        *worth(shown, thresholds).checks,
        *(
            [check("gradient_ratio", shown.gradient_ratio, ">=", thresholds.min_gradient_ratio)]
            if shown.host_learns
            else ()
        ),
        check("gradient_health", shown.gradient_health, ">=", thresholds.min_gradient_health),
        *(
            [check("isolation_violations", shown.isolation_violations, "<=", thresholds.max_isolation_violations)]
            if shown.isolation_due or shown.isolation_violations is not None
            else ()
        ),
    ]


def before_fossilizing(shown: Shown, thresholds: GateThresholds) -> list[GateCheck]:
    """G5: without the seed the host would be worse, by enough and with confidence."""
    return [
        check("holding_epochs", shown.epochs_in_stage, ">=", thresholds.min_holding_epochs, "epochs"),
        *worth(shown, thresholds).checks,
        check("gradient_health", shown.gradient_health, ">=", thresholds.min_gradient_health),
    ]


def in_words(failed: GateCheck) -> str:
    """A check in words."""
    return _WORDS.get(failed.id, failed.id.replace("_", " "))


_WORDS: Final = MappingProxyType(
    {
        "training_epochs": "epochs in training",
        "holding_epochs": "epochs in holding",
        "probe_gain_loss_lower": "probe_gain_loss, by its lower bound",
        "removal_cost_loss_lower": "lower bound of the removal cost in loss",
        "removal_cost_upper": "removal cost, by its upper bound",
        "isolation_violations": "isolation",
    }
)
