"""Figures of a bench: metric against MACs, the Pareto front, paired differences. In the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.bench.analysis import ArmSummary, Findings, macs
from esper.bench.campaign import Evidence
from esper.bench.trial import TrialOutcome
from esper.karn.figures import GRID, INK, LINES, QUIET, STYLE, dress
from esper.leyline import MissingExtraError

GROWING, FIXED = LINES[0], LINES[1]
"""Colours of arms that grow and of arms that do not."""
GRID_POINTS = 60


def draw(evidence: Evidence, findings: Findings, folder: Path) -> list[str]:
    """Draw as SVG and PNG; returns the figures' names. Raises ``MissingExtraError`` without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("drawing figures", "report") from None
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with matplotlib.rc_context(STYLE):
        for name, painter in (("course", _course), ("pareto", _pareto), ("differences", _differences)):
            figure = Figure(figsize=(8.0, 4.6), dpi=144, facecolor="white", layout="constrained")
            if painter(figure, evidence, findings):
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
                figure.savefig(folder / f"{name}.png", metadata={"Software": None})
                names.append(name)
    return names


def _course(figure: Any, evidence: Evidence, findings: Findings) -> bool:
    axes = figure.subplots()
    labels: list[tuple[float, float, str, str]] = []
    for line in findings.lines:
        points = mean_course([outcome for outcome in evidence.finals[line.arm] if outcome.curve])
        if not points:
            continue
        colour, style = _look(line, findings)
        width = 2.2 if line.arm == findings.grown else 1.3
        axes.plot([at for at, _ in points], [value for _, value in points], style, color=colour, linewidth=width)
        labels.append((*points[-1], line.arm, colour))
        grown = moments(evidence.finals[line.arm], points)
        axes.plot([at for at, _ in grown], [value for _, value in grown], "^", color=colour, markersize=5, alpha=0.6)
    if not labels:
        return False
    _log_macs(axes)
    _label(axes, labels)
    dress(axes, f"validation {_unit(findings)}", "Metric against compute, mean over seeds (triangles: growth)")
    axes.set_xlabel("multiply-accumulates spent, everything counted")
    return True


def mean_course(outcomes: Sequence[TrialOutcome]) -> list[tuple[float, float]]:
    """Mean metric at points that are evenly spaced in log MACs, where all runs have one; empty without runs."""
    if not outcomes:
        return []
    courses = [np.array(outcome.curve, dtype=np.float64).T for outcome in outcomes]
    first = max(float(spent[0]) for spent, _ in courses)
    last = min(float(spent[-1]) for spent, _ in courses)
    if first >= last:
        return [(last, _mean_at(courses, last))]
    step = (math.log(last) - math.log(first)) / (GRID_POINTS - 1)
    places = [math.exp(math.log(first) + i * step) for i in range(GRID_POINTS - 1)] + [last]
    return [(at, _mean_at(courses, at)) for at in places]


def moments(outcomes: Sequence[TrialOutcome], points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where on the mean course ``points`` a seed was born in some run; at its beginning what was born before it."""
    spent = [at for at, _ in points]
    births = sorted(max(float(birth), spent[0]) for outcome in outcomes for birth in outcome.births)
    return [(at, float(np.interp(at, spent, [value for _, value in points]))) for at in births]


def _mean_at(courses: Sequence[npt.NDArray[np.float64]], at: float) -> float:
    """Mean over runs ``[spent, metric]`` of the metric at ``at``, straight between two measurements."""
    return math.fsum(float(np.interp(at, spent, metric)) for spent, metric in courses) / len(courses)


def _pareto(figure: Any, evidence: Evidence, findings: Findings) -> bool:
    if findings.pareto is None:
        return False
    axes = figure.subplots()
    shown = [line for line in findings.lines if line.macs is not None and line.test is not None]
    points = {
        line.arm: (line.macs, line.test.mean) for line in shown if line.macs is not None and line.test is not None
    }
    front = sorted(points[arm] for arm in findings.pareto.front)
    steps = [*front, (findings.pareto.reference_macs, front[-1][1])]
    axes.step([at for at, _ in steps], [value for _, value in steps], where="post", color=QUIET, linewidth=1.2)
    labels: list[tuple[float, float, str, str]] = []
    for line in shown:
        at, value = points[line.arm]
        colour = GROWING if line.grows else FIXED
        half = None if line.test is None or line.test.half is None else [line.test.half]
        axes.errorbar([at], [value], yerr=half, fmt="o", color=colour, markersize=5, capsize=2)
        labels.append((at, value, line.arm, colour))
    _log_macs(axes)
    _label(axes, labels)
    title = f"Pareto front, hypervolume {findings.pareto.hypervolume:.1f} (blue grows, red does not)"
    dress(axes, f"test {_unit(findings)}", title)
    axes.set_xlabel("multiply-accumulates of one run, everything counted")
    return True


def _differences(figure: Any, evidence: Evidence, findings: Findings) -> bool:
    measured = [each for each in findings.differences if each.test is not None]
    if not measured:
        return False
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    headline = {each.control for each in findings.headline}
    for row, each in enumerate(measured):
        assert each.test is not None
        colour = GROWING if each.control in headline else QUIET
        half = each.test.half
        axes.errorbar([each.test.mean], [row], xerr=None if half is None else [half], fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(measured)), [f"minus {each.control}" for each in measured])
    axes.set_ylim(len(measured) - 0.5, -0.5)
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    dress(axes, "", f"{findings.grown}: paired differences, 95 % t intervals (blue: equal compute)", grid=False)
    axes.set_xlabel(f"test {_unit(findings)}, positive is better")
    return True


def _log_macs(axes: Any) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: macs(value))
    axes.margins(x=0.12, y=0.06)
    low, high = axes.get_xlim()
    # room for names behind the last points
    axes.set_xlim(low, high * (high / low) ** 0.08)


def _label(axes: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right of their points, pushed down where they would touch one that is there already."""
    from matplotlib.patheffects import withStroke

    (left, right), (low, high) = (map(math.log, axes.get_xlim()), axes.get_ylim())
    width, room = (right - left) * 0.14, (high - low) * 0.042
    placed: list[tuple[float, float]] = []
    for at, value, text, colour in sorted(labels, key=lambda label: -label[1]):
        x, y = math.log(at), value
        for other, taken in placed:
            if abs(x - other) < width:
                y = min(y, taken - room)
        placed.append((x, y))
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        halo = [withStroke(linewidth=2.5, foreground="white")]
        axes.annotate(text, (at, y), color=colour, fontsize=8.5, path_effects=halo, **place)


def _look(line: ArmSummary, findings: Findings) -> tuple[str, str]:
    if line.arm == findings.grown:
        return GROWING, "-"
    return (LINES[5], "-") if line.grows else (FIXED if line.arm.endswith("equal") else QUIET, "--")


def _unit(findings: Findings) -> str:
    metric = findings.metric
    return f"{metric.name} ({metric.unit})" if metric.unit else metric.name
