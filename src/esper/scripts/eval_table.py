"""The table of ``esper eval``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from esper.karn.stats import Interval, interval
from esper.leyline import Metric
from esper.tolaria.executor import EpisodeResult


@dataclass(frozen=True, slots=True)
class Line:
    """One arm of the table; ``difference`` is policy minus arm, paired by seed, up meaning better."""

    arm: str
    test: Interval | None
    difference: Interval | None
    kept: float
    parameters: float
    macs: float


def summarise(results: Mapping[str, Sequence[EpisodeResult]], metric: Metric) -> list[Line]:
    """The table's lines; the first arm is what the others are compared with."""
    sign = 1.0 if metric.higher_is_better else -1.0
    scores = {arm: [_test(result) for result in played] for arm, played in results.items()}
    first = next(iter(scores.values()))
    lines = []
    for i, (arm, played) in enumerate(results.items()):
        paired = [sign * (mine - other) for mine, other in zip(first, scores[arm], strict=True)]
        n = len(played)
        lines.append(
            Line(
                arm,
                interval(scores[arm]),
                None if i == 0 else interval(paired),
                sum(sum(result.view.fossilized.values()) for result in played) / n,
                sum(result.view.host_parameters + result.view.seed_parameters for result in played) / n,
                sum(result.total_macs for result in played) / n,
            )
        )
    return lines


def table(lines: Sequence[Line], metric: Metric) -> Table:
    """For people."""
    view = Table(
        box=box.SIMPLE_HEAD,
        title="held-out seeds, means with 95 % t intervals; differences are policy minus arm, paired by seed",
        title_style="dim",
        title_justify="left",
    )
    view.add_column("arm", style="bold")
    headings = (f"test {metric.name} {metric.unit}".strip(), "policy better by", "kept", "parameters", "MACs")
    for heading in headings:
        view.add_column(heading, justify="right")
    for line in lines:
        view.add_row(*cells(line))
    return view


def cells(line: Line) -> tuple[str, ...]:
    """One line of the table as text."""
    return (
        line.arm,
        _shown(line.test),
        "" if line.difference is None else _shown(line.difference, "+"),
        f"{line.kept:.1f}",
        f"{line.parameters:,.0f}",
        f"{line.macs:.3g}",
    )


def _shown(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return "–"
    around = "" if value.half is None else f" ± {value.half:.2f}"
    return f"{value.mean:{sign}.2f}{around}"


def _test(result: EpisodeResult) -> float:
    return math.nan if result.test_metric is None else result.test_metric
