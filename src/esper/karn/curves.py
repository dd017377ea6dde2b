"""Every figure of a run over its epochs, rounds and time, for charts; and many runs in the same charts.

Read off the journal as it is. Of a long series each bucket keeps its extremes, its last value and how many points it
stands for; of many environments and lines some are drawn, and how many are not is said.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from esper.karn.courses import (
    EPOCH_CHARTS,
    HEAD,
    ROUND_CHARTS,
    BoundStretch,
    Course,
    Courses,
    Key,
    Points,
    SeedLife,
    read_courses,
)
from esper.karn.detail import curve
from esper.karn.parts import Curve, Part, number
from esper.karn.series import Bucket, Series
from esper.leyline import EsperError

BUCKETS: Final = 1000
"""Most points of a line that are sent as they are."""
VALUES: Final = 60_000
"""Most values of a chart of many lines; each line keeps :data:`FEWEST` points all the same."""
FEWEST: Final = 200
OF_BUCKET: Final = 3
"""Values that a bucket has: its least, its most and its last."""
TRACKS: Final = 16
"""Most courses of environments in one answer."""
LINES: Final = 120
"""Most lines of one chart."""

_COST, _ALPHA = "removal cost of each seed", "alpha of each seed"
THROUGHPUT: Final = "throughput, epochs a second"
VITALS_CHARTS: Final = {
    "process_cores": ("cores in use", "the run", 1.0),
    "cores": ("cores in use", "there are", 1.0),
    "cpu_share": ("CPU of all cores, %", "everyone", 100.0),
    "io_wait_share": ("CPU of all cores, %", "waits for disks", 100.0),
    "process_memory": ("memory of the run, GB", "", 1e-9),
    "memory_available": ("memory left, GB", "", 1e-9),
    "read_bytes_per_second": ("disk, MB a second", "read", 1e-6),
    "write_bytes_per_second": ("disk, MB a second", "written", 1e-6),
    "disk_free": ("disk left, GB", "", 1e-9),
    "gpu_share": ("GPU, % of the time", "", 100.0),
    "gpu_memory": ("memory of the GPU, GB", "in use", 1e-9),
    "gpu_memory_total": ("memory of the GPU, GB", "there is", 1e-9),
}
"""Vital -> the chart that it is in, what the line is called there, and its factor."""
SECOND: Final = frozenset({"there are", "there is", "written", "waits for disks"})
_ORDER: Final = ("metric", "loss", "reward", "learning rate", _COST, _ALPHA)


class CurveLine(Part, kw_only=True, frozen=True):
    """One line of a chart. Lines of one ``hue`` have one colour, in every chart; ``dashed`` ones stand second."""

    label: str
    curve: Curve
    hue: int
    dashed: bool = False


class CurveChart(Part, kw_only=True, frozen=True):
    """Lines over the same epochs, rounds of a policy's learning, or seconds since the run began."""

    title: str
    x: str
    lines: list[CurveLine]
    unit: str = ""
    of: int
    """Lines that there are; those beyond :data:`LINES` are not among ``lines``."""


class RunCurves(Part, kw_only=True, frozen=True):
    """The charts of one episode (of a learner, one round) and of the whole run; or those of many runs' newest ones."""

    charts: list[CurveChart]
    metric: str = ""
    episode: int | None = None
    episodes: list[int] = []
    """Those that there are to choose from."""
    tracks: int = 0
    """Courses of environments in this episode; ``drawn`` of them are in the charts."""
    drawn: int = 0
    seeds: list[SeedLife] = []
    """Those of the courses that are drawn."""
    bounds: list[BoundStretch] = []
    runs: list[str] = []
    """The runs that are overlaid; the place of a run is its hue."""
    left_out: dict[str, str] = {}
    """Run -> why it is not in the charts."""


class _Line(NamedTuple):
    """A line before it is sampled. ``spread`` holds the extremes where the points are means."""

    chart: str
    x: str
    label: str
    points: Points
    hue: int
    dashed: bool = False
    spread: tuple[list[float], list[float]] | None = None


def run_curves(directory: Path, episode: int | None = None, titles: Collection[str] = ()) -> RunCurves:
    """The charts of ``episode``, of the newest one by default; of those with one of the ``titles``, where given.

    Raises ``DataError`` for a journal that is too long.
    """
    found = read_courses(directory)
    episodes = sorted({key[0] for key in found.courses})
    shown = episode if episode in episodes else episodes[-1] if episodes else None
    keys = _keys(found, shown)
    drawn = {key: found.courses[key] for key in keys[:TRACKS]}
    lines = [*_rounds(found), *_epochs(drawn), *_seeds(drawn), *_time(found)]
    lines = [line for line in lines if not titles or line.chart in titles]
    return RunCurves(
        charts=_charts(lines, found.unit),
        metric=found.metric,
        episode=shown,
        episodes=episodes,
        tracks=len(keys),
        drawn=len(drawn),
        seeds=[life for course in drawn.values() for life in course.seeds.values()],
        bounds=found.bounds,
    )


def overlaid(directories: Sequence[Path]) -> RunCurves:
    """Many runs in the same charts: of each its rounds, its time, and its newest episode, arm by arm as the mean over
    environments with their extremes. A run that cannot be read is left out, with the reason."""
    lines: list[_Line] = []
    left_out: dict[str, str] = {}
    metrics: dict[str, str] = {}
    for hue, directory in enumerate(directories):
        try:
            found = read_courses(directory)
        except (EsperError, OSError) as problem:
            left_out[directory.name] = str(problem)
            continue
        if not found.courses and not found.rounds:
            left_out[directory.name] = "no epoch has ended"
            continue
        metrics.setdefault(found.metric, found.unit)
        several = [*_rounds(found), *_means(found), *_time(found)]
        lines += [one._replace(label=_joined(directory.name, one.label), hue=hue) for one in several]
    (metric, unit), *others = metrics.items() or [("", "")]
    if others:  # figures of different kinds share an axis there: none of their units is right
        metric, unit = "metrics", ""
    return RunCurves(
        charts=_charts(lines, unit), metric=metric, runs=[path.name for path in directories], left_out=left_out
    )


def _joined(run: str, label: str) -> str:
    return f"{run}: {label}" if label else run


def _keys(found: Courses, episode: int | None) -> list[Key]:
    return [key for key in sorted(found.courses, key=lambda key: (key[1], key[2])) if key[0] == episode]


def _charts(lines: Iterable[_Line], unit: str) -> list[CurveChart]:
    """What is looked at first stands first; charts of rounds before those of epochs, and time last."""
    by_chart: dict[tuple[str, str], list[_Line]] = {}
    for line in lines:
        by_chart.setdefault((line.chart, line.x), []).append(line)
    charts = []
    for (title, x), each in by_chart.items():
        drawn = each[:LINES]
        charts.append(
            CurveChart(
                title=title,
                x=x,
                unit=unit if title in ("metric", _COST) else "",
                of=len(each),
                lines=[
                    CurveLine(
                        label=one.label,
                        curve=sampled(one.points, _most(one, len(drawn)), one.spread),
                        hue=one.hue,
                        dashed=one.dashed,
                    )
                    for one in drawn
                ],
            )
        )
    return sorted(charts, key=_place)


def _most(line: _Line, lines: int) -> int:
    """Points that a line may have among so many."""
    share = VALUES // lines
    alone = min(BUCKETS, max(FEWEST, share))
    if len(line.points) <= alone and line.spread is None:
        return alone
    return min(BUCKETS, max(FEWEST, share // OF_BUCKET))


def _place(chart: CurveChart) -> tuple[int, int]:
    by_x = ("round", "epoch", "second").index(chart.x)
    return by_x, _ORDER.index(chart.title) if chart.title in _ORDER else len(_ORDER)


def sampled(points: Sequence[tuple[int, float]], most: int, spread: tuple[list[float], list[float]] | None) -> Curve:
    """The points as they are, up to ``most``; beyond, in buckets of equal weight with their extremes.

    ``low``, ``high`` and ``nans`` are empty where each bucket is one point: they would say nothing else.
    """
    width = max(1, -(-len(points) // most))
    if width == 1 and spread is None:
        last = [number(value) for _, value in points]
        return Curve(at=[at for at, _ in points], low=[], high=[], last=last, nans=[], seen=len(last))
    buckets = []
    for begin in range(0, len(points), width):
        part = Series(width)
        (at, value), *rest = points[begin : begin + width]
        part.buckets = [Bucket(at, at, 1, value, value, value, 1 if value != value else 0)]
        for at, value in rest:
            part.add(at, value)
        (bucket,) = part.buckets
        if spread is not None:
            low, high = ([value for value in side[begin : begin + width] if value == value] for side in spread)
            bucket.low, bucket.high = min(low, default=math.nan), max(high, default=math.nan)
        buckets.append(bucket)
    return curve(Series(width, buckets))


def _rounds(found: Courses) -> Iterator[_Line]:
    for name, title in ROUND_CHARTS.items():
        if name in found.rounds:
            yield _Line(title, "round", "all heads" if name == "entropy" else "", found.rounds[name], 0)
    heads = [head for head in found.rounds if head.startswith(HEAD)]
    for place, head in enumerate(heads):
        yield _Line(ROUND_CHARTS["entropy"], "round", head.removeprefix(HEAD), found.rounds[head], place + 1, True)


def _epochs(courses: Mapping[Key, Course]) -> Iterator[_Line]:
    arms = list(dict.fromkeys(arm for _, _, arm in courses))
    for place, (key, course) in enumerate(courses.items()):
        hue = arms.index(key[2]) if len(arms) > 1 else place
        for name, points in (*course.fields.items(), ("reward", course.rewards)):
            title, what = EPOCH_CHARTS.get(name, (name, ""))
            if points:
                label = f"{_named(key, courses)} {what}".strip()
                yield _Line(title, "epoch", label, points, hue, what == "training")


def _seeds(courses: Mapping[Key, Course]) -> Iterator[_Line]:
    hues: dict[str, int] = {}
    for title, of in ((_COST, "costs"), (_ALPHA, "alphas")):
        for key, course in courses.items():
            for name, points in getattr(course, of).items():
                label = f"{_named(key, courses)}: {name}"
                yield _Line(title, "epoch", label, points, hues.setdefault(label, len(hues)))


def _means(found: Courses) -> Iterator[_Line]:
    """Of each arm in the newest episode, with the extremes over environments where there are several."""
    newest = max((key[0] for key in found.courses), default=None)
    keys = _keys(found, newest)
    arms: dict[str, list[Course]] = {}
    for key in keys:
        arms.setdefault(key[2], []).append(found.courses[key])
    for arm, courses in arms.items():
        name = f"{arm}, mean of {len(courses)}" if len(courses) > 1 else arm
        second = arm != next(iter(arms))
        for field, (title, what) in EPOCH_CHARTS.items():
            tracks = [course.fields.get(field, []) for course in courses]
            yield from _mean(title, f"{name} {what}".strip(), tracks, second or what == "training")
        yield from _mean("reward", name, [course.rewards for course in courses], second)
    yield from _seeds({key: found.courses[key] for key in keys})


def _mean(chart: str, label: str, tracks: Sequence[Points], dashed: bool) -> Iterator[_Line]:
    if len(tracks) == 1 and tracks[0]:
        yield _Line(chart, "epoch", label, tracks[0], 0, dashed)
        return
    values: dict[int, list[float]] = {}
    for track in tracks:
        for at, value in track:
            values.setdefault(at, []).append(value)
    if values:
        ordered = sorted(values.items())
        means = [(at, sum(each) / len(each)) for at, each in ordered]
        numbers = [[value for value in each if value == value] or [math.nan] for _, each in ordered]
        spread = [min(each) for each in numbers], [max(each) for each in numbers]
        yield _Line(chart, "epoch", label, means, 0, dashed, spread)


def _time(found: Courses) -> Iterator[_Line]:
    if throughput := _throughput(found.done):
        yield _Line(THROUGHPUT, "second", "", throughput, 0)
    for name, (title, what, factor) in VITALS_CHARTS.items():
        if name in found.vitals:
            points = [(at, factor * value) for at, value in found.vitals[name]]
            yield _Line(title, "second", what, points, 0, what in SECOND)


def _throughput(done: Sequence[tuple[float, int]]) -> Points:
    """Epochs of all environments for each second, over stretches of a second at least and a hundredth of all epochs,
    and of as many epochs as there are environments, which end theirs together."""
    envs = len({env for _, env in done})
    least = max(envs, len(done) // 100)
    points: Points = []
    begun, count = 0.0, 0
    for second, _ in done:
        count += 1
        if count >= least and second - begun >= 1.0 and count % max(1, envs) == 0:
            points.append((round(second), count / (second - begun)))
            begun, count = second, 0
    return points


def _named(key: Key, courses: Mapping[Key, Course]) -> str:
    """The arm; with its environment where several play it."""
    alone = sum(other[2] == key[2] for other in courses) == 1
    return key[2] if alone and key[2] else f"{key[2]} {key[1]}".strip()
