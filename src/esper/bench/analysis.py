"""What a bench says: means, paired differences with intervals, the headline, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from esper.bench.arms import LARGE_EQUAL, RETRAINED_EQUAL, RIVALS, Arm
from esper.bench.campaign import Evidence
from esper.bench.topologies import SEARCHES
from esper.bench.trial import TrialOutcome
from esper.karn.stats import Interval, interval
from esper.leyline import Metric

FEWEST: Final = 2
"""Seeds below which there is no interval."""


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm: means over the seeds on which it did not fail."""

    arm: str
    what: str
    grows: bool
    setting: str
    test: Interval | None
    validation: Interval | None
    parameters: float | None
    trained: float | None
    """Parameters that learn."""
    inference_macs: float | None
    macs: float | None
    """Spent by one run, everything counted."""
    tuning_macs: int
    found_macs: int | None
    """Spent to find the schedule, for the arm that follows one."""
    kept: float | None
    candidates: float | None
    """Topologies that a search trained; ``None`` for other arms."""
    seconds: float | None
    cpu_seconds: float | None
    failed: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """``arm`` minus ``control``, paired by seed; positive means that ``arm`` is better."""

    arm: str
    control: str
    test: Interval | None
    macs_ratio: float | None
    """MACs of ``arm`` over those of ``control``."""
    trained_ratio: float | None
    """The same of parameters that learn."""
    cpu_ratio: float | None
    """The same of processor time."""
    unpaired: int
    """Seeds on which one of the two failed."""


@dataclass(frozen=True, slots=True)
class Pareto:
    """Arms that no other arm beats at as few MACs, and the areas they dominate: points times decades of MACs."""

    front: tuple[str, ...]
    reference_metric: float
    reference_macs: float
    hypervolume: float
    hypervolume_growing: float | None
    """Of the arms that grow alone..."""
    hypervolume_fixed: float | None
    """...and of those that do not."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a report is written from."""

    grown: str
    metric: Metric
    seeds: int
    lines: tuple[ArmSummary, ...]
    headline: tuple[PairedDifference, ...]
    """Grown minus the arms trained from scratch and the searches for as many MACs, and minus the adapter with the best
    validation."""
    differences: tuple[PairedDifference, ...]
    """Grown minus every arm."""
    pareto: Pareto | None
    notes: tuple[str, ...] = field(default=())


def analyse(evidence: Evidence, grown: str, metric: Metric) -> Findings:
    """From the outcomes to what they say."""
    lines = tuple(_line(arm, evidence) for arm in evidence.arms)
    seeds = len(next(iter(evidence.finals.values())))
    controls = [arm.name for arm in evidence.arms if arm.name != grown]
    differences = {control: _difference(evidence, grown, control, metric) for control in controls}
    against = (LARGE_EQUAL, RETRAINED_EQUAL, *SEARCHES, *_best_adapter(lines, metric))
    headline = tuple(differences[name] for name in against if name in differences)
    notes = [
        f"{line.arm} failed on {line.failed} of {seeds} seeds; its figures are of the others"
        for line in lines
        if line.failed
    ]
    if seeds < FEWEST:
        notes.insert(0, f"{seeds} seed is too few for an interval; give --seeds {FEWEST} or more")
    return Findings(
        grown=grown,
        metric=metric,
        seeds=seeds,
        lines=lines,
        headline=headline,
        differences=tuple(differences.values()),
        pareto=pareto(lines, metric),
        notes=tuple(notes),
    )


def _best_adapter(lines: Iterable[ArmSummary], metric: Metric) -> list[str]:
    """Chosen by validation: chosen by test it would be the luckiest."""
    sign = 1.0 if metric.higher_is_better else -1.0
    adapters = {
        line.arm: sign * line.validation.mean
        for line in lines
        if line.arm in RIVALS and RIVALS[line.arm].kind != "full" and line.validation is not None
    }
    return [max(adapters, key=adapters.__getitem__)] if adapters else []


def _line(arm: Arm, evidence: Evidence) -> ArmSummary:
    outcomes = [outcome for outcome in evidence.finals[arm.name] if outcome.failed is None]
    tuning = evidence.tuning[arm.name]
    schedule = evidence.schedule if arm.policy == "schedule" else None
    return ArmSummary(
        arm=arm.name,
        what=arm.what,
        grows=arm.grows,
        setting=tuning.setting.label(),
        test=interval([outcome.test for outcome in outcomes if outcome.test is not None]),
        validation=interval([outcome.validation for outcome in outcomes if outcome.validation is not None]),
        parameters=_mean(outcome.parameters for outcome in outcomes),
        trained=_mean(outcome.trained for outcome in outcomes),
        inference_macs=_mean(outcome.inference_macs for outcome in outcomes),
        macs=_mean(outcome.macs for outcome in outcomes),
        tuning_macs=tuning.macs,
        found_macs=None if schedule is None else int(schedule["macs"]),
        kept=_mean(len(outcome.seeds) for outcome in outcomes),
        candidates=_mean(outcome.candidates for outcome in outcomes) if arm.name in SEARCHES else None,
        seconds=_mean(outcome.seconds for outcome in outcomes),
        cpu_seconds=_mean(outcome.cpu_seconds for outcome in outcomes),
        failed=len(evidence.finals[arm.name]) - len(outcomes),
    )


def _difference(evidence: Evidence, arm: str, control: str, metric: Metric) -> PairedDifference:
    sign = 1.0 if metric.higher_is_better else -1.0
    pairs = list(zip(evidence.finals[arm], evidence.finals[control], strict=True))
    measured = [(mine, other) for mine, other in pairs if mine.test is not None and other.test is not None]
    return PairedDifference(
        arm=arm,
        control=control,
        test=interval([sign * (_test(mine) - _test(other)) for mine, other in measured]),
        macs_ratio=_mean(mine.macs / other.macs for mine, other in measured),
        trained_ratio=_mean(mine.trained / other.trained for mine, other in measured if other.trained),
        cpu_ratio=_mean(mine.cpu_seconds / other.cpu_seconds for mine, other in measured if other.cpu_seconds),
        unpaired=len(pairs) - len(measured),
    )


def _test(outcome: TrialOutcome) -> float:
    assert outcome.test is not None
    return outcome.test


def pareto(lines: Sequence[ArmSummary], metric: Metric) -> Pareto | None:
    """Front and hypervolumes of the arms' means; ``None`` when no arm was measured.

    The reference is the most MACs that any arm spent, and chance level (the worst arm where there is no such thing).
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    points = {
        line.arm: (line.macs, sign * line.test.mean)
        for line in lines
        if line.macs is not None and line.test is not None and math.isfinite(line.test.mean)
    }
    if not points:
        return None
    growing = {line.arm for line in lines if line.grows}
    worst = min(value for _, value in points.values()) if metric.chance is None else sign * metric.chance
    most = max(macs for macs, _ in points.values())
    groups = [[point for arm, point in points.items() if (arm in growing) is grows] for grows in (True, False)]
    areas = [hypervolume(group, worst, most) if group else None for group in groups]
    return Pareto(
        front=tuple(arm for arm, point in points.items() if not any(_beats(other, point) for other in points.values())),
        reference_metric=sign * worst,
        reference_macs=most,
        hypervolume=hypervolume(list(points.values()), worst, most),
        hypervolume_growing=areas[0],
        hypervolume_fixed=areas[1],
    )


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether ``one`` is as good in both and better in one of: fewer MACs, higher value."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def hypervolume(points: Sequence[tuple[float, float]], worst: float, most: float) -> float:
    """Area between the points' Pareto front and the reference: ``points`` are ``(macs, value)``, higher values better.

    MACs are measured in decades (log10), so the area is in units of the value times decades. Zitzler and Thiele (1999).
    """
    area, best = 0.0, worst
    ordered = sorted(points)
    ends = [macs for macs, _ in ordered[1:]] + [most]
    for (macs, value), end in zip(ordered, ends, strict=True):
        best = max(best, value)
        area += max(0.0, math.log10(end / macs)) * (best - worst)
    return area


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return math.fsum(known) / len(known) if known else None


def macs(value: float | None) -> str:
    """``13.6 G``."""
    if value is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
