"""Several runs overlaid: the course of every arm, grouped by configuration with mean, spread and n.

Runs are of one group when their manifests hold the same configuration but for seeds and places. A group's curve is the
mean over its episodes at each epoch; ``spread`` is their standard deviation, absent where there is only one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.karn.parts import Number, number
from esper.leyline import DataError, EsperError
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.nissa.rundir import RunDirectory
from esper.nissa.segments import journal_bytes

LARGEST: Final = 64 << 20
"""Bytes of a journal up to which it is read whole for a comparison."""
NOT_CONFIG: Final = frozenset({"seed", "episodes", "run_dir", "quiet", "overwatch", "threads", "export"})
"""Settings that do not make another configuration."""


class Course(msgspec.Struct, omit_defaults=True, frozen=True):
    """Mean metric by epoch. ``spread`` is a standard deviation, ``None`` where n is 1; ``n`` counts the episodes."""

    run: str
    """Name of the run; of a group, its label."""
    arm: str
    group: str
    at: list[int]
    mean: list[Number]
    spread: list[float | None]
    n: list[int]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What the compare view shows."""

    runs: list[Course]
    groups: list[Course]
    labels: dict[str, str]
    """Group -> task, policy and how many runs it has; with the start of its digest where others say the same."""
    metric: str = ""
    unit: str = ""
    left_out: dict[str, str]
    """Run -> why it is not in the comparison."""
    compared: int
    """Runs that were to be compared."""
    of: int
    """Runs that there are to choose from."""


Episodes = dict[str, list[dict[int, float]]]
"""Arm -> one mapping of epoch to metric for each episode."""


def compare(paths: Sequence[Path], of: int | None = None) -> Comparison:
    """Read the runs and overlay them. A run that cannot be read is left out, with the reason.

    ``of`` counts the runs that there are, where these are some of them.
    """
    left_out: dict[str, str] = {}
    runs: list[Course] = []
    pooled: dict[tuple[str, str], list[dict[int, float]]] = {}
    members: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    metrics: dict[str, str] = {}
    for path in paths:
        size = sum(journal_bytes(path))
        if size > LARGEST:
            left_out[path.name] = f"its journal is long ({size / 1e6:.0f} MB); ask it with esper query"
            continue
        try:
            started, episodes = _episodes(path, size)
        except (EsperError, OSError) as problem:
            left_out[path.name] = str(problem)
            continue
        if not episodes:
            left_out[path.name] = "no epoch has ended"
            continue
        group = _group(path, started)
        members.setdefault(group, []).append(path.name)
        titles[group] = f"{started.get('task', 'unknown task')}, {started.get('policy', 'unknown policy')}"
        metrics.setdefault("metric", str(started.get("metric", {}).get("name", "")))
        metrics.setdefault("unit", str(started.get("metric", {}).get("unit", "")))
        for arm, tracks in sorted(episodes.items()):
            runs.append(_course(path.name, arm, group, tracks))
            pooled.setdefault((group, arm), []).extend(tracks)
    labels = {group: f"{titles[group]} ({_count(len(names), 'run')})" for group, names in members.items()}
    plain = list(labels.values())
    labels = {name: f"{it} [{name[:6]}]" if plain.count(it) > 1 else it for name, it in labels.items()}
    groups = [_course(labels[group], arm, group, tracks) for (group, arm), tracks in sorted(pooled.items())]
    return Comparison(
        runs=runs,
        groups=groups,
        labels=labels,
        metric=metrics.get("metric", ""),
        unit=metrics.get("unit", ""),
        left_out=left_out,
        compared=len(paths),
        of=len(paths) if of is None else of,
    )


@lru_cache(maxsize=64)
def _episodes(path: Path, size: int) -> tuple[dict[str, Any], Episodes]:
    """First event and courses of a run whose journal has ``size`` bytes, up to where it can be read."""
    started: dict[str, Any] = {}
    tracks: dict[tuple[str, int | None, int | None], dict[int, float]] = {}
    try:
        for event in read_journal(path):
            if event.event_type is T.TRAINING_STARTED:
                started = event.data
            elif event.event_type is T.EPOCH_COMPLETED and event.epoch is not None:
                track = tracks.setdefault((event.data.get("arm", ""), event.env_id, event.episode), {})
                if (metric := event.data.get("validation_metric")) is not None:
                    track[event.epoch] = float(metric)
    except DataError:
        if not tracks:
            raise
    episodes: Episodes = {}
    for (arm, _, _), track in tracks.items():
        episodes.setdefault(arm, []).append(track)
    return started, episodes


def _course(run: str, arm: str, group: str, tracks: list[dict[int, float]]) -> Course:
    at = sorted({epoch for track in tracks for epoch in track})
    mean: list[Number] = []
    spread: list[float | None] = []
    n: list[int] = []
    for epoch in at:
        values = [track[epoch] for track in tracks if epoch in track]
        centre = sum(values) / len(values)
        mean.append(number(centre))
        square = sum((value - centre) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else None
        spread.append(math.sqrt(square) if square is not None and math.isfinite(square) else None)
        n.append(len(values))
    return Course(run=run, arm=arm, group=group, at=at, mean=mean, spread=spread, n=n)


def _group(path: Path, started: Mapping[str, Any]) -> str:
    """Digest of the configuration; of what the first event says where there is no manifest."""
    try:
        settings: dict[str, Any] = {name: it.value for name, it in RunDirectory.open(path).manifest.config.items()}
    except DataError:
        settings = {}
    settings = settings or {name: value for name, value in started.items() if name not in ("run_id", "envs")}
    kept = {name: value for name, value in settings.items() if name not in NOT_CONFIG}
    return hashlib.sha256(msgspec.json.encode(kept, order="deterministic")).hexdigest()[:12]


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"
