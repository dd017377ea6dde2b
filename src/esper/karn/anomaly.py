"""Explainable anomaly score: named factors, each with what was measured, its threshold and its weight.

``score = sum(weight * level)``, where ``level`` rises from 0 at the threshold to 1 at ``full``. A factor whose evidence
was not measured is absent; it neither raises nor calms the score. The board is ordered by ``rank``, which follows the
score upwards at once and downwards only after :data:`CALM` of the environment's own epochs, and ignores changes smaller
than :data:`MARGIN`, unless they make the level worse, so that rows do not jump about.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from esper.karn.parts import Factor, Level, number
from esper.karn.state import AnomalyFold, EnvironmentFold, RunState
from esper.karn.words import duration
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
    """For a person; ``{measured}``, ``{threshold}`` and the plural's ``{s}`` are filled in."""

    def level(self, measured: float) -> float:
        """How far ``measured`` is past the threshold, in [0, 1]."""
        level = (measured - self.threshold) / (self.full - self.threshold)
        return 1.0 if level > 1.0 else level


RULES: Final = {
    "non_finite": Rule(1.0, 0, 1, "fields", "{measured} figure{s} of the last epoch not finite"),
    "panic": Rule(0.6, 0, 2, "panics", "{measured} governor panic{s} in the last 5 epochs"),
    "stale": Rule(0.5, 1, 3, "x", "{measured} times the longest wait that is usual"),
    "falling": Rule(0.5, 0.25, 1, "share", "{measured} of its progress lost (limit {threshold})"),
    "reward_falling": Rule(0.5, 0.25, 1, "share", "{measured} of its reward lost again (limit {threshold})"),
    "prune_storm": Rule(0.4, 2, 6, "prunes", "{measured} prune{s} in the last 5 epochs (limit {threshold})"),
    "gate_storm": Rule(0.3, 10, 30, "failures", "{measured} failed gate{s} in the last 5 epochs (limit {threshold})"),
    "rent_without_gain": Rule(
        0.4, 0.05, 0.5, "share", "seeds add {measured} of the host's parameters and measure no gain"
    ),
    "slow": Rule(0.3, 2, 6, "x", "an epoch takes {measured} times the typical one (limit {threshold})"),
    "stalled": Rule(0.4, 10, 30, "epochs", "no better metric for {measured} epoch{s} (limit {threshold})"),
}
"""Name -> rule."""

_PANICS, _PRUNES, _FAILURES = (int(RULES[name].threshold) for name in ("panic", "prune_storm", "gate_storm"))
_STALLED, _FALLING, _REWARD, _SLOW, _RENT = (
    RULES[name].threshold for name in ("stalled", "falling", "reward_falling", "slow", "rent_without_gain")
)

STALE_AT_LEAST: Final = 30.0
"""Seconds of silence that are never stale."""
STALE_EPOCHS: Final = 5.0
"""Epochs' worth of silence that are never stale."""


def update(state: RunState, environment: EnvironmentFold) -> None:
    """Score the environment anew from what was folded, and steady its rank."""
    fold, score = environment.anomaly, 0.0
    fold.evidence = evidence = _evidence(state, environment)
    for name, measured in evidence.items():
        rule = RULES[name]
        score += rule.weight * rule.level(measured)
    environment.score, rank = score, environment.rank
    if score == rank:
        fold.calmer = 0
        return
    if score > rank and (score > rank + MARGIN or status(score) != environment.level):
        environment.rank, fold.calmer = score, 0
    elif score < rank - MARGIN:
        fold.calmer += 1
        if fold.calmer >= CALM:
            environment.rank, fold.calmer = score, 0
    else:
        fold.calmer = 0
    environment.level = status(environment.rank)


def patience(epoch_seconds: float) -> float:
    """Seconds of silence that are no sign of anything where an epoch takes ``epoch_seconds``."""
    return max(STALE_AT_LEAST, STALE_EPOCHS * epoch_seconds)


def stale_factor(environment: EnvironmentFold, silent_for: float) -> Factor | None:
    """The one factor that depends on the clock: ``silent_for`` seconds against what an epoch takes here."""
    waited = round(silent_for / patience(environment.epoch_seconds or 0.0), 1)
    if waited <= RULES["stale"].threshold:
        return None
    factor = _factor("stale", waited)
    return replace(factor, text=f"silent for {duration(silent_for)}, {factor.text}")


def factors(fold: AnomalyFold) -> list[Factor]:
    """The parts of the score."""
    return [_factor(name, measured) for name, measured in fold.evidence.items()]


def status(rank: float) -> Level:
    """What a rank means for the operator."""
    for name, least in LEVELS:
        if rank >= least:
            return name
    return "ok"


def _factor(name: str, measured: float) -> Factor:
    """The factor, with a sentence of its figures."""
    rule = RULES[name]
    figures = {"measured": _figure(measured, rule.unit), "threshold": _figure(float(rule.threshold), rule.unit)}
    return Factor(
        name=name,
        text=rule.words.format(**figures, s="" if measured == 1 else "s"),
        measured=number(measured),
        threshold=float(rule.threshold),
        weight=rule.weight,
        level=rule.level(measured),
        unit=rule.unit,
    )


def _evidence(state: RunState, environment: EnvironmentFold) -> dict[str, float]:
    """What is past its threshold, by factor. It is gathered at every epoch, so nothing is worked out for calm ones."""
    epoch, best, report = environment.epoch or 0, environment.best, environment.report
    evidence: dict[str, float] = {}
    if environment.non_finite:
        evidence["non_finite"] = float(len(environment.non_finite))
    for name, epochs, allowed in (
        ("panic", environment.panics, _PANICS),
        ("prune_storm", environment.prunes, _PRUNES),
        ("gate_storm", environment.gate_failures, _FAILURES),
    ):
        # they ascend: most often enough of them are too long ago, and none is counted
        if len(epochs) > allowed and epochs[-1 - allowed] > epoch - RECENT:
            evidence[name] = float(len(epochs) - bisect.bisect_right(epochs, epoch - RECENT))
    if best is not None and best.epoch is not None and environment.metric.seen >= MIN_EPOCHS:
        if epoch - best.epoch > _STALLED:
            evidence["stalled"] = float(epoch - best.epoch)
        if (lost := lost_share(environment)) > _FALLING:
            evidence["falling"] = lost
    if environment.best_objective is not None and (lost := _reward_lost(environment)) > _REWARD:
        evidence["reward_falling"] = lost
    train, typical = None if report is None else report.data.get("train_ms"), state.typical_train_ms
    if train is not None and typical is not None and typical > 0 and len(state.environments) > 1:
        slower = train / typical
        if _SLOW < slower < math.inf:
            evidence["slow"] = slower
    if (rent := _rent_without_gain(environment)) > _RENT:
        evidence["rent_without_gain"] = rent
    return evidence


def lost_share(environment: EnvironmentFold) -> float:
    """Share of the progress from the first to the best metric that is lost again; 0 within twice the usual wobble."""
    first, best, last = environment.first_metric, environment.best, environment.metric.last
    if first is None or best is None or last is None:
        return 0.0
    return _lost(first, float(best.value), last, environment.wobble)


def _reward_lost(environment: EnvironmentFold) -> float:
    """The same of the objective, whose changes the rewards pay: that survives rewards that the journal left out."""
    first, best, now = environment.first_objective, environment.best_objective, environment.loose_facts.get("objective")
    if first is None or best is None or now is None:
        return 0.0
    return _lost(first, best, float(now.value), environment.objective_wobble)


def _lost(first: float, top: float, last: float, wobble: float | None) -> float:
    progress, lost = abs(top - first), abs(top - last)
    if not math.isfinite(last) or progress <= 0 or lost <= 2 * (wobble or 0.0):
        return 0.0
    return lost / progress


_PAYING = frozenset({SeedStage.HOLDING.name, SeedStage.FOSSILIZED.name})


def _rent_without_gain(environment: EnvironmentFold) -> float:
    """Parameters in blended seeds over the host's if their removal would cost nothing; 0 unless all were measured."""
    parameters, gain = 0, 0.0
    for slot in environment.slots.values():
        seed = slot.seed
        if seed is None or slot.stage not in _PAYING or not seed.parameters:
            continue
        cost = seed.facts.get("removal_cost")
        if cost is None:
            return 0.0
        parameters += seed.parameters
        gain += float(cost.value)
    host = environment.host_parameters
    return parameters / host if parameters and host and gain <= 0 else 0.0


def _figure(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if value.is_integer() or abs(value) >= 10 else f"{value:.2g}"
