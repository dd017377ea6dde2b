"""What can go wrong, or right, with a learner and its machine: pure functions of measured figures.

Each answers with a :class:`Finding` or ``None``. What was not measured is not judged. :class:`PolicyMonitor` keeps the
figures of past rounds and speaks when a finding is new, not for as long as it lasts.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

from esper.leyline import Severity, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.simic.ppo import UpdateReport


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """From where on a figure is a finding."""

    ratio_high: float = 5.0
    ratio_low: float = 0.1
    explained_variance: float = -0.2
    """A value function that explains less than this is worse than none..."""
    value_rounds: int = 5
    """...when it does so for so many rounds."""
    head_share: float = 0.02
    """A head whose entropy is below this share of its greatest possible one is decided..."""
    head_rounds: int = 3
    head_choice: float = 0.05
    """...if it has a choice in at least this share of the steps."""
    trend_rounds: int = 8
    """Rounds that are compared with as many before them."""
    trend_errors: float = 2.0
    """Standard errors that make a change."""
    plateau_errors: float = 0.5
    """Standard errors below which nothing changed."""
    hacking_points: float = 2.0
    """Mean excess of what was paid over what the objective gained, in the metric's unit."""
    memory_share: float = 0.9
    """Share of the machine's memory."""
    slow_factor: float = 2.0
    """A step this many times as long as the median of the rounds before."""
    slow_rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("value_rounds", "head_rounds", "trend_rounds", "slow_rounds"):
            if getattr(self, name) < 2:
                raise UsageError(f"{name} of the detectors is {getattr(self, name)}; it must be 2 or more")


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure that crossed its threshold."""

    event_type: T
    figure: str
    measured: float
    threshold: float
    message: str
    severity: Severity = "warning"
    rounds: int | None = None
    head: str | None = None
    baseline: float | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """Findings with one key are one and the same that lasts."""
        return self.event_type.name, self.head

    def event(self, round_number: int) -> TelemetryEvent:
        """As an event of round ``round_number``."""
        optional = {"rounds": self.rounds, "head": self.head, "baseline": self.baseline}
        data = {
            "round": round_number,
            "measured": self.measured,
            "threshold": self.threshold,
            "figure": self.figure,
            **{name: value for name, value in optional.items() if value is not None},
        }
        return TelemetryEvent(
            event_type=self.event_type, severity=self.severity, message=self.message, episode=round_number, data=data
        )


def ratios(report: UpdateReport, config: DetectorConfig) -> list[Finding]:
    """Probability ratios of the loss that left all bounds."""
    found = []
    if report.ratio_max > config.ratio_high:
        text = f"a probability ratio of {report.ratio_max:.3g} in the update; the steps are too large"
        found.append(Finding(T.RATIO_EXPLOSION_DETECTED, "largest ratio", report.ratio_max, config.ratio_high, text))
    if report.ratio_min < config.ratio_low:
        text = f"a probability ratio of {report.ratio_min:.3g} in the update; the steps are too large"
        found.append(Finding(T.RATIO_COLLAPSE_DETECTED, "smallest ratio", report.ratio_min, config.ratio_low, text))
    return found


def value_collapse(history: Sequence[float], config: DetectorConfig) -> Finding | None:
    """Explained variance below the threshold in each of the last rounds."""
    recent = history[-config.value_rounds :]
    if len(recent) < config.value_rounds or max(recent) >= config.explained_variance:
        return None
    return Finding(
        T.VALUE_COLLAPSE_DETECTED,
        "explained variance",
        recent[-1],
        config.explained_variance,
        f"for {config.value_rounds} rounds V has predicted returns worse than their mean does",
        rounds=config.value_rounds,
    )


def numerical_instability(report: UpdateReport) -> Finding | None:
    """Optimiser steps that were left out, or a figure of the update that is not finite."""
    names = ("policy_loss", "value_loss", "kl", "grad_norm", "ratio_max")
    broken = next((name for name in names if (v := getattr(report, name)) is not None and not math.isfinite(v)), None)
    if report.skipped_steps == 0 and broken is None:
        return None
    what = f"{broken} is {getattr(report, broken)}" if broken else f"{report.skipped_steps} optimiser steps left out"
    return Finding(
        T.NUMERICAL_INSTABILITY_DETECTED,
        "optimiser steps left out",
        float(report.skipped_steps),
        0.0,
        f"the update is numerically unstable: {what}",
        severity="error",
    )


def head_collapse(head: str, shares: Sequence[float], config: DetectorConfig) -> Finding | None:
    """``shares`` of its greatest possible entropy that the head had in rounds in which it had a choice."""
    recent = shares[-config.head_rounds :]
    if len(recent) < config.head_rounds or max(recent) >= config.head_share:
        return None
    return Finding(
        T.HEAD_COLLAPSE_DETECTED,
        "share of the greatest entropy",
        recent[-1],
        config.head_share,
        f"head {head} has stopped exploring for {config.head_rounds} rounds",
        rounds=config.head_rounds,
        head=head,
    )


def trend(gains: Sequence[float], config: DetectorConfig) -> Finding | None:
    """Mean objective gain per round: the last rounds against as many before them, in standard errors."""
    n = config.trend_rounds
    if len(gains) < 2 * n or not all(map(math.isfinite, gains[-2 * n :])):
        return None
    before, after = gains[-2 * n : -n], gains[-n:]
    change = fmean(after) - fmean(before)
    error = math.sqrt((stdev(before) ** 2 + stdev(after) ** 2) / n)
    text = f"objective gain {fmean(before):.3g} -> {fmean(after):.3g} over {n} rounds (error {error:.2g})"
    if abs(change) > config.trend_errors * error:
        kind, word = (T.IMPROVEMENT_DETECTED, "improves") if change > 0 else (T.DEGRADATION_DETECTED, "gets worse")
        severity: Severity = "info" if change > 0 else "warning"
        limit = math.copysign(config.trend_errors * error, change)
    elif abs(change) <= config.plateau_errors * error or change == 0:
        kind, word, severity, limit = T.PLATEAU_DETECTED, "has settled", "info", config.plateau_errors * error
    else:
        return None
    return Finding(
        kind,
        "change of the mean objective gain",
        change,
        limit,
        f"the policy {word}: {text}",
        severity,
        rounds=n,
        baseline=fmean(before),
    )


def reward_hacking(paid: Sequence[float], gains: Sequence[float], config: DetectorConfig) -> Finding | None:
    """Episodes that were paid more than the objective gained: the mean excess, with its error, above the limit."""
    excess = [p - g for p, g in zip(paid, gains, strict=True) if math.isfinite(p) and math.isfinite(g)]
    if len(excess) < 2:
        return None
    lower = fmean(excess) - 2.0 * stdev(excess) / math.sqrt(len(excess))
    if lower <= config.hacking_points:
        return None
    return Finding(
        T.REWARD_HACKING_SUSPECTED,
        "lower bound of the mean excess of the return over the objective's gain",
        lower,
        config.hacking_points,
        f"episodes are paid {fmean(excess):.3g} more than the objective gains on average; the reward can be farmed",
        baseline=fmean(gains),
    )


def memory(used_bytes: int, total_bytes: int, config: DetectorConfig) -> Finding | None:
    """Share of the machine's memory that this process has taken at its peak."""
    share = used_bytes / total_bytes
    if share <= config.memory_share:
        return None
    text = f"the process has taken {used_bytes / 2**30:.2f} of {total_bytes / 2**30:.2f} GiB of memory"
    return Finding(T.MEMORY_WARNING, "share of the machine's memory", share, config.memory_share, text)


def slowdown(step_ms: Sequence[float], config: DetectorConfig) -> Finding | None:
    """The last round's mean step time against the median of the rounds before."""
    if len(step_ms) <= config.slow_rounds:
        return None
    usual = median(step_ms[-1 - config.slow_rounds : -1])
    if step_ms[-1] <= config.slow_factor * usual:
        return None
    text = f"a step took {step_ms[-1]:.0f} ms on average, and {usual:.0f} ms in the rounds before"
    return Finding(
        T.PERFORMANCE_DEGRADATION, "mean step time, ms", step_ms[-1], config.slow_factor * usual, text, baseline=usual
    )


def memory_taken() -> tuple[int, int] | None:
    """Peak resident bytes of this process and bytes of the machine; ``None`` where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, total


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What one round measured, besides the update."""

    paid: tuple[float, ...]
    """Undiscounted return of each finished episode."""
    gains: tuple[float, ...]
    """Objective gain of each finished episode."""
    step_ms: float | None


@dataclass(slots=True)
class PolicyMonitor:
    """Figures of past rounds and the findings that stand."""

    config: DetectorConfig = field(default_factory=DetectorConfig)
    gains: list[float] = field(default_factory=list)
    explained: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    heads: dict[str, list[float]] = field(default_factory=dict)
    inputs: set[tuple[str, str | None]] = field(default_factory=set)

    def look(self, report: UpdateReport, figures: RoundFigures) -> list[Finding]:
        """Take in a round; what is found now and was not found in the round before."""
        config = self.config
        if figures.gains:
            self.gains.append(fmean(figures.gains))
        if report.explained_variance is not None:
            self.explained.append(report.explained_variance)
        if figures.step_ms is not None:
            self.step_ms.append(figures.step_ms)
        for name, head in report.heads.items():
            if head.share >= config.head_choice:
                self.heads.setdefault(name, []).append(head.entropy / head.most)
        taken = memory_taken()
        found = [
            *ratios(report, config),
            value_collapse(self.explained, config),
            numerical_instability(report),
            *(head_collapse(name, shares, config) for name, shares in self.heads.items()),
            trend(self.gains, config),
            reward_hacking(figures.paid, figures.gains, config),
            None if taken is None else memory(*taken, config),
            slowdown(self.step_ms, config),
        ]
        present = [finding for finding in found if finding is not None]
        fresh = [finding for finding in present if finding.key not in self.inputs]
        self.inputs = {finding.key for finding in present}
        return fresh

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "gains": list(self.gains),
            "explained": list(self.explained),
            "step_ms": list(self.step_ms),
            "heads": {name: list(shares) for name, shares in self.heads.items()},
            "standing": sorted(([name, head] for name, head in self.inputs), key=str),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        self.gains, self.explained = list(state["gains"]), list(state["explained"])
        self.step_ms = list(state["step_ms"])
        self.heads = {name: list(shares) for name, shares in state["heads"].items()}
        self.inputs = {(name, head) for name, head in state["standing"]}
