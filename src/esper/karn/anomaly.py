"""Explainable anomaly score: named factors, each with what was measured, its threshold and its weight.

``score = sum(weight * level)``, where ``level`` rises from 0 at the threshold to 1 at ``full``. A factor whose evidence
was not measured is absent; it neither raises nor calms the score. The board is ordered by ``rank``, which follows the
score upwards at once and downwards only after :data:`CALM` of the environment's own epochs, and ignores changes smaller
than :data:`MARGIN`, so that rows do not jump about.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Final

from esper.karn.schema import Level
from esper.karn.state import EnvironmentFold, FactorRecord, Measured, RunState
from esper.leyline import SeedStage

MARGIN: Final = 0.1
CALM: Final = 3
RECENT: Final = 5
"""Epochs that count as recent for storms and panics."""
MIN_EPOCHS: Final = 5
"""Epochs with a metric before its course is judged."""

LEVELS: Final[tuple[tuple[Level, float], ...]] = (("critical", 1.0), ("bad", 0.6), ("watch", 0.25))
"""Status and the least rank for it; below the last one it is ``ok``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A factor: level 0 up to ``threshold``, 1 from ``full`` on."""

    weight: float
    threshold: float
    full: float
    unit: str
    words: str
    """For a person; ``{measured}`` and ``{threshold}`` are filled in."""


RULES: Final = {
    "non_finite": Rule(1.0, 0, 1, "fields", "{measured} measured fields are NaN or infinite"),
    "panic": Rule(0.6, 0, 2, "panics", "{measured} governor panics in the last 5 epochs"),
    "stale": Rule(0.5, 1, 3, "x", "no event for {measured} times as long as it should take"),
    "falling": Rule(0.5, 0.25, 1, "share", "{measured} of the progress since the start is lost (from {threshold} on)"),
    "prune_storm": Rule(0.4, 2, 6, "prunes", "{measured} prunes in the last 5 epochs (more than {threshold})"),
    "gate_storm": Rule(0.3, 10, 30, "failures", "{measured} failed gates in the last 5 epochs (more than {threshold})"),
    "rent_without_gain": Rule(
        0.4, 0.05, 0.5, "share", "seeds add {measured} of the host's parameters and measure no gain"
    ),
    "slow": Rule(0.3, 2, 6, "x", "an epoch takes {measured} times the run's typical one (more than {threshold})"),
    "stalled": Rule(0.25, 10, 30, "epochs", "no better metric for {measured} epochs (more than {threshold})"),
}
"""Name -> rule. Reward factors join when rewards are in the journal."""

STALE_AT_LEAST: Final = 30.0
"""Seconds of silence that are never stale."""
STALE_EPOCHS: Final = 5.0
"""Epochs' worth of silence that are never stale."""


def update(state: RunState, environment: EnvironmentFold) -> None:
    """Score the environment anew from what was folded, and steady its rank."""
    fold = environment.anomaly
    fold.factors, fold.score = [], 0.0
    for name, value in _evidence(state, environment):
        factor = _factor(name, value)
        if factor is not None:
            fold.factors.append(factor)
            fold.score += factor.weight * factor.level
    if fold.score > fold.rank + MARGIN:
        fold.rank, fold.calmer = fold.score, 0
    elif fold.score < fold.rank - MARGIN:
        fold.calmer += 1
        if fold.calmer >= CALM:
            fold.rank, fold.calmer = fold.score, 0
    else:
        fold.calmer = 0


def stale_factor(environment: EnvironmentFold, silent_for: float) -> FactorRecord | None:
    """The one factor that depends on the clock: ``silent_for`` seconds against what an epoch takes here."""
    allowed = max(STALE_AT_LEAST, STALE_EPOCHS * (environment.epoch_seconds or 0.0))
    return _factor("stale", round(silent_for / allowed, 1))


def status(rank: float) -> Level:
    """What a rank means for the operator."""
    for name, least in LEVELS:
        if rank >= least:
            return name
    return "ok"


def words(factor: FactorRecord) -> str:
    """The factor as a sentence with its figures."""
    return RULES[factor.name].words.format(measured=_figure(factor.measured), threshold=_figure(factor.threshold))


def _factor(name: str, measured: float) -> FactorRecord | None:
    """The factor, ``None`` when it is not past its threshold."""
    rule = RULES[name]
    if not measured > rule.threshold:
        return None
    level = min(1.0, (measured - rule.threshold) / (rule.full - rule.threshold))
    return FactorRecord(name, float(measured), float(rule.threshold), rule.weight, level, rule.unit)


def _evidence(state: RunState, environment: EnvironmentFold) -> list[tuple[str, float]]:
    epoch = environment.epoch or 0
    evidence: list[tuple[str, float]] = []
    if environment.non_finite:
        evidence.append(("non_finite", len(environment.non_finite)))
    for name, epochs in (
        ("panic", environment.panics),
        ("prune_storm", environment.prunes),
        ("gate_storm", environment.gate_failures),
    ):
        if epochs and epochs[-1] > epoch - RECENT:
            evidence.append((name, len(epochs) - bisect.bisect_right(epochs, epoch - RECENT)))
    best, last = environment.best, environment.metric.last
    if best is not None and best.epoch is not None and environment.metric.seen >= MIN_EPOCHS:
        evidence.append(("stalled", epoch - best.epoch))
        if last is not None and math.isfinite(last) and (lost := _lost_share(environment, best, last)) is not None:
            evidence.append(("falling", lost))
    train, typical = _train_ms(environment), state.typical_train_ms
    if train is not None and typical is not None and typical > 0 and len(state.environments) > 1:
        evidence.append(("slow", train / typical))
    if (rent := _rent_without_gain(environment)) is not None:
        evidence.append(("rent_without_gain", rent))
    return evidence


def _lost_share(environment: EnvironmentFold, best: Measured, last: float) -> float | None:
    """Share of the progress from the first to the best metric that is lost again, beyond twice the usual wobble."""
    if environment.first_metric is None:
        return None
    progress, lost = abs(float(best.value) - environment.first_metric), abs(float(best.value) - last)
    if progress <= 0 or lost <= 2 * (environment.wobble or 0.0):
        return 0.0
    return lost / progress


def _train_ms(environment: EnvironmentFold) -> float | None:
    """Newest training time, the part of a step that tells a slow environment from one with more to measure."""
    measured = environment.facts.get("train_ms")
    return float(measured.value) if measured is not None and math.isfinite(float(measured.value)) else None


_PAYING = frozenset({SeedStage.HOLDING.name, SeedStage.FOSSILIZED.name})


def _rent_without_gain(environment: EnvironmentFold) -> float | None:
    """Share of parameters in blended seeds whose removal would cost nothing; ``None`` unless all were measured."""
    host = environment.host_parameters
    if not host:
        return None
    parameters, gain = 0, 0.0
    for slot in environment.slots.values():
        seed = slot.seed
        if seed is None or slot.stage not in _PAYING or not seed.parameters:
            continue
        cost = seed.facts.get("removal_cost")
        if cost is None:
            return None
        parameters += seed.parameters
        gain += float(cost.value)
    return parameters / host if parameters and gain <= 0 else 0.0


def _figure(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.2g}"
