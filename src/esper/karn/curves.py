"""Every figure of a run over its epochs and rounds, for charts: losses, metric, rates, seeds, and how a policy learns.

Read off the journal as it is. Of a long series each bucket keeps its extremes, its last value and how many points it
stands for; of many environments some are drawn, and how many are not is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from esper.karn.detail import curve
from esper.karn.parts import Curve, Part
from esper.karn.series import Bucket, Series
from esper.leyline import DataError, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.nissa.segments import list_segments

LARGEST: Final = 64 << 20
"""Bytes of a journal up to which it is read whole for curves."""
BUCKETS: Final = 1000
"""Most points of a line that are sent as they are."""
TRACKS: Final = 16
"""Most courses of environments in one answer."""

OF_EPOCH: Final = {
    "validation_metric": ("metric", "validation"),
    "validation_loss": ("loss", "validation"),
    "train_loss": ("loss", "training"),
    "learning_rate": ("learning rate", ""),
    "host_gradient_norm": ("gradient norm of the host", ""),
    "train_ms": ("time of an epoch's training, ms", ""),
}
"""Field of an epoch's end -> the chart that it is in, and what the line is called there besides its arm."""
OF_ROUND: Final = {
    "mean_episode_return": "return",
    "mean_objective_gain": "gain of the objective",
    "entropy": "entropy, nats",
    "kl": "KL of the update, nats",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
    "grad_norm": "gradient norm of the policy",
}


class CurveLine(Part, kw_only=True, frozen=True):
    """One line of a chart."""

    label: str
    curve: Curve
    arm: str | None = None
    env: int | None = None
    dashed: bool = False


class CurveChart(Part, kw_only=True, frozen=True):
    """Lines over the same epochs (or rounds of a policy's learning)."""

    title: str
    x: str
    lines: list[CurveLine]
    unit: str = ""


class RunCurves(Part, kw_only=True, frozen=True):
    """The charts of one episode (of a learner, one round), and those over all rounds."""

    charts: list[CurveChart]
    episode: int | None = None
    episodes: list[int] = []
    """Those that there are to choose from."""
    tracks: int = 0
    """Courses of environments in this episode; ``drawn`` of them are in the charts."""
    drawn: int = 0


class _Course:
    """What one environment measured through one episode, by one arm."""

    def __init__(self) -> None:
        self.fields: dict[str, list[tuple[int, float]]] = {}
        self.alphas: dict[str, list[tuple[int, float]]] = {}
        self.costs: dict[str, list[tuple[int, float]]] = {}
        self.rewards: list[tuple[int, float]] = []


_COST, _ALPHA = "removal cost of each seed", "alpha of each seed"
_ORDER: Final = ("metric", "loss", "reward", "learning rate", _COST, _ALPHA)

_Key = tuple[int, int, str]
"""Episode, environment and arm."""
_Read = tuple[dict[_Key, _Course], dict[str, list[tuple[int, float]]], str]


def run_curves(directory: Path, episode: int | None = None) -> RunCurves:
    """The charts of ``episode``, of the newest one by default. Raises ``DataError`` for a journal that is too long."""
    size = sum(segment.stat().st_size for segment in list_segments(directory).values())
    if size > LARGEST:
        raise DataError(f"{directory.name}: its journal is long ({size / 1e6:.0f} MB); ask it with esper query")
    courses, rounds, unit = _read(directory, size)
    episodes = sorted({key[0] for key in courses})
    shown = episode if episode in episodes else episodes[-1] if episodes else None
    keys = [key for key in sorted(courses, key=lambda key: (key[1], key[2])) if key[0] == shown]
    drawn = {key: courses[key] for key in keys[:TRACKS]}
    return RunCurves(
        charts=sorted([*_rounds(rounds), *_epochs(drawn, unit), *_seeds(drawn, unit)], key=_place),
        episode=shown,
        episodes=episodes,
        tracks=len(keys),
        drawn=len(drawn),
    )


def _place(chart: CurveChart) -> int:
    """What is looked at first stands first; charts of the rounds before those of one episode."""
    return -1 if chart.x == "round" else _ORDER.index(chart.title) if chart.title in _ORDER else len(_ORDER)


def sampled(points: Iterable[tuple[int, float]]) -> Curve:
    """The points as they are, up to :data:`BUCKETS`; beyond, in buckets of equal weight with their extremes."""
    listed = list(points)
    width = max(1, -(-len(listed) // BUCKETS))
    buckets = []
    for begin in range(0, len(listed), width):
        part = Series(width)
        (at, value), *rest = listed[begin : begin + width]
        part.buckets = [Bucket(at, at, 1, value, value, value, 1 if value != value else 0)]
        for at, value in rest:
            part.add(at, value)
        buckets += part.buckets
    return curve(Series(width, buckets))


@lru_cache(maxsize=16)
def _read(directory: Path, size: int) -> _Read:
    """What a journal of ``size`` bytes measured, up to where it can be read."""
    courses: dict[_Key, _Course] = {}
    rounds: dict[str, list[tuple[int, float]]] = {}
    arms: dict[int | None, str] = {}
    seeds: dict[tuple[int | None, str | None], str] = {}
    unit = ""
    try:
        for event in read_journal(directory):
            data, kind = event.data, event.event_type
            if kind is T.TRAINING_STARTED:
                unit = data.get("metric", {}).get("unit", "")
            elif kind is T.EPISODE_STARTED:
                arms[event.env_id] = str(data.get("arm", ""))
                seeds = {key: name for key, name in seeds.items() if key[0] != event.env_id}
            elif kind is T.PPO_UPDATE_COMPLETED:
                _round(rounds, data)
            elif kind is T.SEED_GERMINATED:
                seeds[event.env_id, event.slot_id] = f"{data.get('blueprint') or event.seed_id} in {event.slot_id}"
            elif event.epoch is not None and event.env_id is not None and kind in _KINDS:
                arm = str(data.get("arm", arms.get(event.env_id, "")))
                course = courses.setdefault((event.episode or 0, event.env_id, arm), _Course())
                _KINDS[kind](course, event, seeds)
    except DataError:
        if not courses and not rounds:
            raise
    return courses, rounds, unit


def _round(rounds: dict[str, list[tuple[int, float]]], data: Mapping[str, Any]) -> None:
    at = int(data.get("round", 0))
    for name in OF_ROUND:
        if (value := data.get(name)) is not None:
            rounds.setdefault(name, []).append((at, float(value)))
    for head, told in data.get("heads", {}).items():
        if (value := told.get("entropy")) is not None:
            rounds.setdefault(f"head.{head}", []).append((at, float(value)))


def _epoch(course: _Course, event: TelemetryEvent, seeds: Mapping[Any, str]) -> None:
    at = event.epoch or 0
    for name in OF_EPOCH:
        if (value := event.data.get(name)) is not None:
            course.fields.setdefault(name, []).append((at, float(value)))
    for slot, alpha in event.data.get("alphas", {}).items():
        course.alphas.setdefault(seeds.get((event.env_id, slot), slot), []).append((at, float(alpha)))


def _cost(course: _Course, event: TelemetryEvent, seeds: Mapping[Any, str]) -> None:
    if (value := event.data.get("removal_cost")) is not None:
        name = seeds.get((event.env_id, event.slot_id), str(event.slot_id))
        course.costs.setdefault(name, []).append((event.epoch or 0, float(value)))


def _reward(course: _Course, event: TelemetryEvent, seeds: Mapping[Any, str]) -> None:
    kind, value = event.data.get("kind"), event.data.get("reward")
    if kind == "last_action" and value is not None:
        course.rewards.append((event.epoch or 0, float(value)))


_KINDS: Final = {T.EPOCH_COMPLETED: _epoch, T.COUNTERFACTUAL_COMPUTED: _cost, T.ANALYTICS_SNAPSHOT: _reward}


def _rounds(rounds: Mapping[str, list[tuple[int, float]]]) -> Iterable[CurveChart]:
    for name, title in OF_ROUND.items():
        lines = [CurveLine(label=title, curve=sampled(rounds[name]))] if name in rounds else []
        if name == "entropy":
            heads = [head for head in rounds if head.startswith("head.")]
            lines += [CurveLine(label=head[5:], curve=sampled(rounds[head]), dashed=True) for head in heads]
        if lines:
            yield CurveChart(title=title, x="round", lines=lines)


def _epochs(courses: Mapping[_Key, _Course], unit: str) -> Iterable[CurveChart]:
    charts: dict[str, list[CurveLine]] = {}
    for key, course in courses.items():
        for name, (title, what) in OF_EPOCH.items():
            if name in course.fields:
                label = " ".join(part for part in (_named(key, courses), what if title == "loss" else "") if part)
                line = CurveLine(
                    label=label,
                    curve=sampled(course.fields[name]),
                    arm=key[2],
                    env=key[1],
                    dashed=what == "training",
                )
                charts.setdefault(title, []).append(line)
        if course.rewards:
            line = CurveLine(label=_named(key, courses), curve=sampled(course.rewards), arm=key[2], env=key[1])
            charts.setdefault("reward", []).append(line)
    for title, lines in charts.items():
        yield CurveChart(title=title, x="epoch", lines=lines, unit=unit if title == "metric" else "")


def _seeds(courses: Mapping[_Key, _Course], unit: str) -> Iterable[CurveChart]:
    for title, of in ((_COST, "costs"), (_ALPHA, "alphas")):
        lines = [
            CurveLine(label=f"{_named(key, courses)}: {name}", curve=sampled(points), arm=key[2], env=key[1])
            for key, course in courses.items()
            for name, points in getattr(course, of).items()
        ]
        if lines:
            yield CurveChart(title=title, x="epoch", lines=lines, unit=unit if of == "costs" else "")


def _named(key: _Key, courses: Mapping[_Key, _Course]) -> str:
    """The arm; with its environment where several play it."""
    alone = sum(other[2] == key[2] for other in courses) == 1
    return key[2] if alone and key[2] else f"{key[2]} {key[1]}".strip()
