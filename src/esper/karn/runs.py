"""Runs in a folder and their states, from manifests and the ends of journals, without reading whole journals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from esper.karn.liveness import goes_on, grown, heard
from esper.karn.words import duration
from esper.leyline import DataError, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.manifest import Manifest
from esper.nissa.reader import read_journal
from esper.nissa.rundir import MANIFEST, RunDirectory, list_runs
from esper.nissa.segments import list_segments, open_segment, stat_segment
from esper.nissa.wire import decode

_TAILS = (1 << 14, 1 << 18)
"""Bytes at a journal's end that are looked at: more where the fewer do not say how it ended."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run as a list shows it. What could not be found out is ``None``."""

    path: Path
    run_id: str
    created: float | None = None
    task: str | None = None
    policy: str | None = None
    kind: str | None = None
    pid: int | None = None
    last_time: float | None = None
    end_status: str | None = None
    bytes: int = 0
    problem: str | None = None
    grew: float | None = None
    """When its journal was last written to, by the file system's clock."""
    goes_on: bool | None = None
    """Whether its process is there; ``None`` where that cannot be told."""

    def state(self, now: float) -> str:
        """``completed`` and the like only after an end event; else how long nothing was heard."""
        if self.problem is not None:
            return f"unreadable: {self.problem}"
        if self.end_status is not None:
            return self.end_status
        if self.last_time is None:
            return "no event yet"
        said = f"last heard {duration(heard(self.last_time, self.grew, now))} ago"
        if self.goes_on:
            return f"running, {said}"
        gone = f", and process {self.pid} is gone" if self.goes_on is False else ""
        return f"no end event{gone}, {said}"


def find_runs(folder: str | Path = "runs") -> list[RunInfo]:
    """All runs in ``folder``, the newest last, or the one that it is. One that cannot be read has its problem."""
    path = Path(folder)
    return [describe_run(path)] if is_run(path) else [describe_run(run) for run in list_runs(path)]


def resolve_run(name: str | Path, base: str | Path = "runs") -> Path:
    """The run that a person means: a run directory, a run id (or the start of one) in ``base``, or a folder of one run.

    Raises ``UsageError`` when there is none or more than one.
    """
    path = Path(name)
    if is_run(path):
        return path
    if path.is_dir():
        inside = list_runs(path)
        if len(inside) == 1:
            return inside[0]
        if inside:
            names = ", ".join(run.name for run in inside[-5:])
            raise UsageError(f"{path} holds {len(inside)} runs; name one of them: {names}")
        raise UsageError(f"{path}: not a run directory, and there is no run in it")
    matches = [run for run in list_runs(base) if run.name.startswith(str(name))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"run {str(name)!r} is ambiguous: {', '.join(run.name for run in matches[:5])}")
    raise UsageError(f"no run {str(name)!r}: neither a directory nor a run id in {base}/")


def describe_run(path: str | Path) -> RunInfo:
    """What the manifest, the first events and the last events say of the run in ``path``."""
    path = Path(path)
    found, manifest = _described(path, _signature(path))
    return found if found.end_status is not None or manifest is None else replace(found, goes_on=goes_on(manifest))


def _signature(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a run is written to."""
    told = []
    for file in (path / MANIFEST, *_segments(path)):
        with contextlib.suppress(OSError):
            about = file.stat()
            told.append((file.name, about.st_size, about.st_mtime_ns))
    return tuple(told)


@lru_cache(maxsize=4096)
def _described(path: Path, signature: tuple[tuple[str, int, int], ...]) -> tuple[RunInfo, Manifest | None]:
    run_id, created, pid, problem, manifest = path.name, None, None, None, None
    try:
        manifest = RunDirectory.open(path).manifest
        run_id, created = manifest.run_id, manifest.created
        pid = manifest.details.get("pid") if isinstance(manifest.details.get("pid"), int) else None
    except DataError as error:
        problem = None if _has_journal(path) else str(error)
    first, segments = _first_event(path), _segments(path)
    try:
        (last_time, end_status), size = _ending(segments), sum(stat_segment(segment).st_size for segment in segments)
    except (DataError, OSError) as error:
        last_time, end_status, size, problem = None, None, 0, problem or str(error)
    started = first.data if first is not None and first.event_type is T.TRAINING_STARTED else {}
    info = RunInfo(
        path=path,
        run_id=run_id,
        created=created if created is not None else (first.timestamp if first is not None else None),
        task=_word(started.get("task")),
        policy=_word(started.get("policy")),
        kind=_word(started.get("kind")),
        pid=pid,
        last_time=last_time,
        end_status=end_status,
        bytes=size,
        problem=problem,
        grew=grown(segments),
    )
    return info, manifest


def _word(value: Any) -> str | None:
    """What a payload says under a key that is for text, if it does."""
    return value if isinstance(value, str) else None


def is_run(path: Path) -> bool:
    """Whether there is a manifest or a journal in ``path``."""
    return path.is_dir() and ((path / "run.json").is_file() or _has_journal(path))


def _has_journal(path: Path) -> bool:
    return bool(list_segments(path))


def _segments(path: Path) -> list[Path]:
    return list(list_segments(path).values())


def _first_event(path: Path) -> TelemetryEvent | None:
    try:
        for batch in read_journal(path).batches():
            return next((event for event in batch.events() if event.event_type is T.TRAINING_STARTED), None)
    except (DataError, OSError):
        return None
    return None


def _ending(segments: list[Path]) -> tuple[float | None, str | None]:
    """Time of the last committed event and the status of the end event behind the last start, read from the end."""
    for segment in reversed(segments):
        last_time = None
        with open_segment(segment) as file:
            size = file.seek(0, 2)
            for tail in _TAILS:
                file.seek(max(0, size - tail))
                last_time, ends = _said_last(file.read(tail))
                if ends is not None:
                    return last_time, _word(ends.data.get("status")) if ends.event_type is T.TRAINING_ENDED else None
                if size <= tail:
                    break
        if last_time is not None:
            return last_time, None
    return None, None


def _said_last(tail: bytes) -> tuple[float | None, TelemetryEvent | None]:
    """Time of the last committed event in the end of a segment, and the last event there that begins or ends a run."""
    committed = tail[: max(0, tail.rfind(b'\n{"commit":', 0, tail.rfind(b"\n")))]
    last = next(events_back(committed, b"\n"), None)
    if last is None:
        return None, None
    # of all but the last event only what begins or ends a run matters: decoding each would take seconds
    for event in events_back(committed, b'"TRAINING_'):
        if event.event_type in (T.TRAINING_STARTED, T.TRAINING_ENDED):
            return last.timestamp, event
    return last.timestamp, None


def events_back(text: bytes, word: bytes) -> Iterator[TelemetryEvent]:
    """The events of the lines in which there is ``word``, the last first; the line feed stands before its line."""
    end = len(text)
    while end > 0 and (at := text.rfind(word, 0, end)) >= 0:
        start = text.rfind(b"\n", 0, at + 1) + 1
        stop = text.find(b"\n", start)
        with contextlib.suppress(DataError):
            yield decode(text[start : stop if stop >= 0 else len(text)], validate=False)
        end = start - 1
