"""The table of runs: what each is, what it came to, and the settings in which they differ.

Read off manifests, the ends of journals and reports, each once while it stays as it is: a folder of a thousand runs
opens in a moment. ``result`` is of the newest episode of the arm that grows; the verdict is the report's.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from esper.karn.filter import Filter
from esper.karn.notes import NOTES, Notes, read_notes
from esper.karn.notes import facts as row_facts
from esper.karn.parts import Level, Number, Part, number, wire_safe
from esper.karn.results import STATIC
from esper.karn.runs import RunInfo, describe_run, events_back
from esper.karn.schema import Verdict
from esper.karn.words import ABSENT, cut, duration, end_reason, figure
from esper.leyline import DataError, TelemetryEvent, decode_json, unknown, visible
from esper.leyline import TelemetryEventType as T
from esper.leyline.files import MANIFEST_BYTES, read_regular
from esper.nissa.manifest import Manifest
from esper.nissa.rundir import MANIFEST, RunDirectory
from esper.nissa.segments import list_segments, open_segment

TAIL: Final = 1 << 18
"""Bytes at a journal's end in which the newest result is looked for."""
NOT_SHOWN: Final = frozenset({"run_dir", "quiet", "overwatch", "config", "task", "policy"})
"""Settings that say nothing of a run, or stand in columns of their own."""
SORTS: Final = ("run", "name", "date", "duration", "task", "policy", "result", "state")
_ENDS: Final[Mapping[str, Level]] = {"failed": "critical", "interrupted": "watch", "preempted": "watch"}


class RunRow(Part, kw_only=True, frozen=True):
    """One run in the table."""

    name: str
    run_id: str
    state: str
    ended: bool
    created: float | None = None
    seconds: float | None = None
    """From the start to the last that was heard of it."""
    task: str | None = None
    policy: str | None = None
    kind: str | None = None
    last_time: float | None = None
    bytes: int = 0
    level: Level | None = None
    headline: str | None = None
    """Verdict of its report."""
    result: Number | None = None
    arm: str | None = None
    split: str | None = None
    """What ``result`` is of."""
    title: str | None = None
    """Name that a person gave it."""
    tags: list[str] = []
    notes: str = ""
    """Their beginning."""
    notes_length: int = 0
    archived: bool = False
    notes_problem: str | None = None
    """Why what a person said of it cannot be read."""
    settings: dict[str, Any] = {}
    """Values of those settings in which the runs differ; one that a run does not have is missing."""


class RunTable(Part, kw_only=True, frozen=True):
    """Runs, the newest last, and the settings in which they differ."""

    rows: list[RunRow]
    keys: list[str]
    edits: bool = False
    """Whether names, tags and notes can be changed here."""


class RunAbout(Part, kw_only=True, frozen=True):
    """All that a manifest says of one run: enough to start it again."""

    name: str
    command: str
    settings: dict[str, Any]
    sources: dict[str, str]
    """Setting -> where its value came from."""
    packages: dict[str, str]
    python: str = ""
    system: str = ""
    host: str = ""
    """A digest that tells machines apart without naming them."""
    cpus: int | None = None
    revision: str | None = None
    dirty: bool | None = None
    diff: str = ""
    diff_bytes: int = 0
    """How long the difference to the revision is as a whole; ``diff`` may be its beginning."""
    path: str = ""
    title: str = ""
    tags: list[str] = []
    notes: str = ""
    archived: bool = False
    digest: str = ""
    """Of what a person said of it: an edit says what it was made from."""


class _Told(msgspec.Struct):
    """The part of ``report.json`` that the table shows."""

    verdict: Verdict | None = None


def run_table(paths: Iterable[Path], now: float, edits: bool = False) -> RunTable:
    """The runs in ``paths`` as they are at wall clock ``now``; ``edits``: whether they can be changed there."""
    found = [(describe_run(path), _facts(path, _signature(path))) for path in paths]
    values = [facts.settings for _, facts in found]
    names = sorted({name for settings in values for name in settings} - NOT_SHOWN)
    # runs of another kind have other settings: those that have one must differ in it
    told = {name: {_spelled(settings[name]) for settings in values if name in settings} for name in names}
    keys = [name for name in names if len(told[name]) > 1]
    return RunTable(rows=[_row(info, facts, keys, now) for info, facts in found], keys=keys, edits=edits)


def run_about(path: Path) -> RunAbout:
    """What the manifest of the run in ``path`` says, and what a person says of it. Raises ``DataError`` where there is
    no manifest.
    """
    manifest: Manifest = RunDirectory.open(path).manifest
    git = manifest.git
    notes = Notes()
    with contextlib.suppress(DataError):  # the table says so
        notes = read_notes(path)
    return RunAbout(
        name=path.name,
        command=shlex.join(manifest.command),
        settings={name: wire_safe(setting.value) for name, setting in sorted(manifest.config.items())},
        sources={name: setting.source for name, setting in sorted(manifest.config.items())},
        packages=dict(sorted(manifest.packages.items())),
        python=manifest.python,
        system=f"{manifest.host.system} {manifest.host.machine}",
        host=manifest.host.digest,
        cpus=manifest.host.cpus,
        revision=None if git is None else git.revision,
        dirty=None if git is None else git.dirty,
        diff="" if git is None else git.diff,
        diff_bytes=0 if git is None else git.diff_bytes,
        path=str(path),
        title=notes.name,
        tags=notes.tags,
        notes=notes.notes,
        archived=notes.archived,
        digest=notes.digest,
    )


def run_subject(row: RunRow) -> dict[str, Any]:
    """Fields of a run for the filter language, its settings by their names."""
    settings = row.settings.items()
    subject: dict[str, Any] = {name: set(map(str, it)) if isinstance(it, list | tuple) else it for name, it in settings}
    named: dict[str, Any] = {
        "run": row.name,
        "task": row.task,
        "policy": row.policy,
        "kind": row.kind,
        "state": row.state,
    }
    named |= {
        "state": row.state,
        "level": row.level,
        "metric": row.result,
        "time": row.created,
        "duration": row.seconds,
        "name": row.title,
        "tag": set(row.tags) or None,
        "archived": "yes" if row.archived else "no",
    }
    subject |= {name: value for name, value in named.items() if value is not None}
    words = [row.name, row.task, row.policy, row.state, row.headline, row.title, *row.tags, row.notes]
    return subject | {"text": " ".join(word for word in words if word)}


def chosen(table: RunTable, wanted: Filter, order: str = "date", archived: bool = False) -> list[RunRow]:
    """The rows that ``wanted`` matches, by ``order``: a column or a setting, with ``-`` in front from the greatest.

    Those that were put away only where ``archived`` says so, or the filter asks for them. What is not known stands
    last. Raises ``UsageError`` for an order that there is not.
    """
    name, back = order.removeprefix("-"), order.startswith("-")
    if name not in SORTS and name not in table.keys:
        raise unknown("column", name, (*SORTS, *table.keys))
    archived = archived or any(term.field == "archived" for term in wanted.terms)
    rows = [row for row in table.rows if (archived or not row.archived) and wanted.matches(run_subject(row))]
    fields = {"run": "name", "name": "title", "date": "created", "duration": "seconds"}

    def value(row: RunRow) -> Any:
        return getattr(row, fields.get(name, name)) if name in SORTS else row.settings.get(name)

    known = [row for row in rows if value(row) is not None]
    known.sort(key=lambda row: _comparable(value(row)), reverse=back)
    return [*known, *(row for row in rows if value(row) is None)]


def text(table: RunTable, rows: Sequence[RunRow]) -> str:
    """The runs as an aligned table, and how many are not shown."""
    if not table.rows:
        return "no runs here\n"
    said = [name for name in ("name", "tags") if any(_said(row, name) for row in rows)]
    head = ["run", *said, "date", "duration", "task", "policy", "result", *map(visible, table.keys), "state", "verdict"]
    lines = [[visible(cell) for cell in _cells(row, table.keys, said)] for row in rows]
    widths = [max(len(line[at]) for line in (head, *lines)) for at in range(len(head))]
    told = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *lines)]
    names = {row.name for row in rows}
    hidden = [row for row in table.rows if row.name not in names]
    archived = sum(row.archived for row in hidden)
    if len(hidden) > archived:
        told.append(f"{len(hidden) - archived} of {len(table.rows)} hidden by the filter")
    if archived:
        told.append(f"{archived} of {len(table.rows)} archived and not shown; --archived shows them")
    told += [visible(f"{row.name}: {row.notes_problem}") for row in rows if row.notes_problem]
    return "\n".join(told) + "\n"


def _said(row: RunRow, name: str) -> str:
    """What a person called it, cut to what a line has room for."""
    words = (row.title or "") if name == "name" else ",".join(row.tags)
    return cut(words, 40)


def setting(value: Any) -> str:
    """A setting's value as a person reads it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else figure(value) if not isinstance(value, dict) else _spelled(value)


def _cells(row: RunRow, keys: Sequence[str], said: Sequence[str]) -> list[str]:
    date = ABSENT if row.created is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created))
    result = ABSENT if row.result is None else figure(row.result)
    settings = [setting(row.settings.get(name)) for name in keys]
    took = ABSENT if row.seconds is None else duration(row.seconds)
    verdict = ABSENT if row.headline is None else cut(row.headline, 60)
    words = [_said(row, name) or ABSENT for name in said]
    return [
        row.name,
        *words,
        date,
        took,
        row.task or ABSENT,
        row.policy or ABSENT,
        result,
        *settings,
        row.state,
        verdict,
    ]


def _row(info: RunInfo, facts: _Facts, keys: Sequence[str], now: float) -> RunRow:
    verdict = facts.verdict
    level = verdict.level if verdict is not None else _ENDS.get(info.end_status or "")
    seconds = None if info.created is None or info.last_time is None else max(0.0, info.last_time - info.created)
    return RunRow(
        name=info.path.name,
        run_id=info.run_id,
        state=info.state(now),
        ended=info.end_status is not None,
        created=info.created,
        seconds=seconds,
        task=info.task,
        policy=info.policy,
        kind=info.kind,
        last_time=info.last_time,
        bytes=info.bytes,
        level=level,
        headline=facts.reason if verdict is None else verdict.headline,
        **_result(info, facts),
        **facts.notes,
        settings={name: wire_safe(facts.settings[name]) for name in keys if facts.settings.get(name) is not None},
    )


def _result(info: RunInfo, facts: _Facts) -> dict[str, Any]:
    """The mean that the report's verdict is about, or the newest episode of the arm that the run is about."""
    if facts.verdict is not None and facts.verdict.arms:
        judged = facts.verdict.arms[0]
        return {"result": judged.mean, "arm": judged.arm, "split": judged.split}
    grown = [arm for arm in facts.newest if arm != STATIC] or list(facts.newest)
    if not grown:
        return {}
    arm = info.policy if info.policy in grown else grown[-1]
    split, value = facts.newest[arm]
    return {"result": number(value), "arm": arm, "split": split}


class _Facts(msgspec.Struct):
    settings: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    """What a person said of it, as fields of a row."""
    verdict: Verdict | None = None
    reason: str | None = None
    """Why it ended, where it did not complete."""
    newest: dict[str, tuple[str, float]] = {}
    """Arm -> split and metric of its newest episode, the newest arm first."""


def _report(path: Path) -> Path:
    return path / "report" / "report.json"


def _signature(path: Path) -> tuple[tuple[str, int, int], ...]:
    told = []
    for file in (path / MANIFEST, path / NOTES, _report(path), *list_segments(path).values()):
        with contextlib.suppress(OSError):
            about = file.stat()
            told.append((file.name, about.st_size, about.st_mtime_ns))
    return tuple(told)


@lru_cache(maxsize=4096)
def _facts(path: Path, signature: tuple[tuple[str, int, int], ...]) -> _Facts:
    facts = _Facts()
    with contextlib.suppress(DataError):
        facts.settings = RunDirectory.open(path).manifest.values()
    try:
        facts.notes = row_facts(read_notes(path))
    except DataError as problem:
        facts.notes = {"notes_problem": str(problem)}
    written = {name: moment for name, _, moment in signature}
    newest = max((moment for name, moment in written.items() if name.startswith("events-")), default=0)
    if written.get("report.json", 0) >= newest:  # an older report is of a run that went on
        with contextlib.suppress(DataError, OSError):
            facts.verdict = decode_json(read_regular(_report(path), MANIFEST_BYTES), path, _Told).verdict
    for event in _newest(path):
        data = event.data
        if event.event_type is T.TRAINING_ENDED and data.get("status") != "completed":
            facts.reason = end_reason(data.get("reason")) or None
        elif event.event_type is T.EPISODE_ENDED:
            split = "test" if data.get("test_metric") is not None else "validation"
            if isinstance(value := data.get(f"{split}_metric"), int | float):
                facts.newest.setdefault(str(data.get("arm", "")), (split, float(value)))
    return facts


def _newest(path: Path) -> Iterable[TelemetryEvent]:
    """Events at the end of the journal that end something, the newest first."""
    for segment in list(list_segments(path).values())[-1:]:
        with contextlib.suppress(DataError, OSError), open_segment(segment) as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            yield from events_back(file.read(TAIL), b'_ENDED"')  # others of that name are skipped by who asks


def _spelled(value: Any) -> str:
    return ABSENT if value is None else json.dumps(wire_safe(value), sort_keys=True, default=str)


def _comparable(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))
