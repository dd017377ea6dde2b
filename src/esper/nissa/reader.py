"""Reading a run's journal: the whole of it, from a known place, or as it grows."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from esper.leyline import DataError, TelemetryEvent
from esper.nissa.segments import (
    Batch,
    Closes,
    Header,
    JournalDamaged,
    Position,
    SegmentScan,
    list_segments,
    open_segment,
    read_header,
    segment_path,
)


class JournalChanged(JournalDamaged):
    """A journal that was truncated, replaced or deleted while it was being followed."""


@dataclass(frozen=True, slots=True)
class TornTail:
    """Bytes behind the last commit of a segment: a batch that was being written when the writer stopped."""

    file: Path
    """The segment as it is named when it is not compressed, whether it is or not."""
    offset: int
    bytes: int
    events: int
    """Whole lines among them."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """A resume: what came before ``segment`` and after ``producer``'s event ``after_seq`` no longer counts."""

    segment: int
    producer: str
    after_seq: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that ``producer`` stamped and the journal does not hold, ``first`` to ``last``."""

    producer: str
    first: int
    last: int


@dataclass(slots=True)
class ReadReport:
    """What a pass over a journal met; complete once the pass is."""

    run_id: str | None = None
    schema: int | None = None
    events: int = 0
    superseded_events: int = 0
    rewinds: list[Rewind] = field(default_factory=list)
    torn: list[TornTail] = field(default_factory=list)
    damage: list[JournalDamaged] = field(default_factory=list)
    """What was skipped; only with ``salvage``."""
    gaps: list[Gap] = field(default_factory=list)
    closed: bool = False
    """The run was over and closed its journal. Otherwise it is still running or it was cut off."""


class _Cursor:
    """Walks over committed batches, segment by segment, and marks what a later resume supersedes.

    ``batches`` ends where the journal does now; calling it again continues there.
    """

    def __init__(self, directory: Path, start: Position | None = None, *, salvage: bool = False) -> None:
        self.directory = directory
        self.position = start
        self.report = ReadReport()
        self.new_rewinds: list[Rewind] = []
        """Resumes that an earlier call could not yet know of."""
        self.seen: dict[str, int] = {}
        """producer -> last seq given out; kept by whoever decodes the events."""
        self._salvage = salvage
        self._headers: dict[int, Header] = {}
        self._broken_headers: set[int] = set()
        self._passed: set[Rewind] = set()
        self._closes: Closes | None = None
        self._closed: Position | None = None

    def batches(self) -> Generator[Batch, None, None]:
        segments = list_segments(self.directory)
        self._read_headers(segments)
        for number, path in segments.items():
            if self.position is not None and number < self.position.segment:
                continue
            start = self._enter(number, path)
            if start is None:
                continue
            scan = SegmentScan(
                path, start, closes=self._closes if start == self._closed else None, salvage=self._salvage
            )
            for batch in scan:
                self.position = batch.end
                yield self._fold(batch)
            self.position = scan.position
            self._closes, self._closed = scan.closes, scan.position
            self.report.damage += scan.damage
            self.report.closed = scan.closes == "journal"
            self._note_tail(number, scan.position.offset, scan.tail)

    def _read_headers(self, segments: dict[int, Path]) -> None:
        """Read the headers not read yet; one that is still being written is tried again next time."""
        self.new_rewinds = []
        for number in range(1, max(segments, default=0) + 1):
            if number in self._headers or number in self._broken_headers:
                continue
            if number not in segments:
                self._damaged(segment_path(self.directory, number), 0, "the segment is missing")
                continue
            try:
                found = read_header(segments[number])
            except JournalDamaged as damage:
                if not self._salvage:
                    raise
                self.report.damage.append(damage)
                self._broken_headers.add(number)
                continue
            if found is not None:
                self._add_header(number, found[0], segments[number])

    def _add_header(self, number: int, header: Header, path: Path) -> None:
        if header.segment != number:
            self._damaged(path, 0, f"it says that it is segment {header.segment}")
        if self.report.run_id is None:
            self.report.run_id, self.report.schema = header.run_id, header.schema
        elif header.run_id != self.report.run_id:
            self._damaged(path, 0, f"it belongs to run {header.run_id!r}, the ones before to {self.report.run_id!r}")
        self._headers[number] = header
        if header.producer is not None and header.supersedes_after is not None:
            rewind = Rewind(number, header.producer, header.supersedes_after)
            self.report.rewinds.append(rewind)
            if rewind.after_seq == 0 or self.seen.get(rewind.producer, 0) >= rewind.after_seq:
                self._passed.add(rewind)
            if self.seen.get(rewind.producer, 0) > rewind.after_seq:
                self.new_rewinds.append(rewind)

    def _enter(self, number: int, path: Path) -> Position | None:
        """Where to read on in segment ``number``; ``None`` while its header is not whole: nothing is committed then."""
        if self.position is not None and self.position.segment == number:
            return self.position
        if number in self._broken_headers:
            # the scan takes header and first batch for one damaged batch and finds its feet behind it
            self.position = Position(number, 0, 0)
            return self.position
        found = read_header(path) if number in self._headers else None
        if found is None:
            with open_segment(path) as file:
                self._note_tail(number, 0, file.read(1 << 16))
            return None
        header, start = found
        before = self.position.crc32 if self.position is not None else None
        if header.previous_crc32 != before:
            previous = self.position or Position(number, 0, 0)
            place = segment_path(self.directory, previous.segment)
            self._damaged(place, previous.offset, f"segment {number} does not continue from here: commits were lost")
        self.position = start
        return start

    def _fold(self, batch: Batch) -> Batch:
        """``batch`` with ``kept`` cut where a later resume supersedes it."""
        ahead = [rewind for rewind in self.report.rewinds if rewind.segment > batch.start.segment]
        if not ahead:
            return batch
        if self._passed.intersection(ahead):
            return replace(batch, kept=0)
        for index, stamp in enumerate(batch.ids()):
            seq = stamp.seq
            if seq is None:
                continue
            reached = [each for each in ahead if each.producer == stamp.producer and each.after_seq <= seq]
            if reached:
                self._passed.update(reached)
                return replace(batch, kept=index + all(each.after_seq == seq for each in reached))
        return batch

    def _note_tail(self, number: int, offset: int, tail: bytes) -> None:
        path = segment_path(self.directory, number)  # its name in either form
        self.report.torn = [torn for torn in self.report.torn if torn.file != path]
        if tail:
            self.report.torn.append(TornTail(path, offset, len(tail), tail.count(b"\n")))

    def _damaged(self, file: Path, offset: int, reason: str) -> None:
        damage = JournalDamaged(file, offset, reason)
        if not self._salvage:
            raise damage
        self.report.damage.append(damage)

    def take(self, batch: Batch, validate: bool) -> list[TelemetryEvent]:
        """The batch's events that stand, counted in the report, gaps included."""
        events = batch.events(validate=validate)
        seen = self.seen
        for event in events:
            producer, seq = event.producer, event.seq
            if producer is None or seq is None:
                continue
            last = seen.get(producer)
            if last is not None and seq > last + 1:
                self.report.gaps.append(Gap(producer, last + 1, seq - 1))
            seen[producer] = seq
        self.report.events += batch.kept
        self.report.superseded_events += batch.count - batch.kept
        return events


class Reading:
    """A run directory's journal, read from the first event to the last committed one.

    Iterating gives the events that stand, in order; ``report`` is complete afterwards. Each iteration is a new pass.
    With ``validate`` every payload is checked against its contract. Damage raises :class:`JournalDamaged` unless
    ``salvage``, which skips the damaged batches and lists them.
    """

    def __init__(self, directory: str | Path, *, salvage: bool = False, validate: bool = False) -> None:
        self.directory = Path(directory)
        self.report = ReadReport()
        self._salvage = salvage
        self._validate = validate
        if not self.directory.is_dir():
            raise DataError(f"{directory}: no such run directory")
        if not list_segments(self.directory):
            raise DataError(f"{directory}: no journal in it (no events-00001.jsonl)")

    def __iter__(self) -> Iterator[TelemetryEvent]:
        cursor = self._cursor()
        for batch in cursor.batches():
            yield from cursor.take(batch, self._validate)

    def batches(self, start: Position | None = None) -> Iterator[Batch]:
        """Committed batches with their places, from ``start`` (a place that an earlier pass gave) or the beginning."""
        cursor = self._cursor(start)
        for batch in cursor.batches():
            cursor.report.events += batch.kept
            cursor.report.superseded_events += batch.count - batch.kept
            yield batch

    def superseded(self) -> Iterator[TelemetryEvent]:
        """The events that a resumed run repeated: committed once, no longer part of the run's history."""
        for batch in self._cursor().batches():
            if batch.kept < batch.count:
                yield from batch.events(superseded=True, validate=self._validate)

    def _cursor(self, start: Position | None = None) -> _Cursor:
        cursor = _Cursor(self.directory, start, salvage=self._salvage)
        self.report = cursor.report
        return cursor


def read_journal(directory: str | Path, *, salvage: bool = False, validate: bool = False) -> Reading:
    """The journal of a run directory; raises ``DataError`` when there is none."""
    return Reading(directory, salvage=salvage, validate=validate)


class JournalTail:
    """Follows a journal that may still be growing.

    ``start`` continues where an earlier reader was. A tail may be made before the journal is there.
    """

    def __init__(self, directory: str | Path, start: Position | None = None, *, validate: bool = False) -> None:
        self._cursor = _Cursor(Path(directory), start)
        self._validate = validate
        self._identity: tuple[int, int] | None = None

    @property
    def report(self) -> ReadReport:
        """What was met so far."""
        return self._cursor.report

    @property
    def position(self) -> Position | None:
        """The place behind the last event given out."""
        return self._cursor.position

    @property
    def rewinds(self) -> list[Rewind]:
        """Resumes found by the last poll that take back events of earlier polls; its own events come after them."""
        return self._cursor.new_rewinds

    def poll(self, limit: int | None = None) -> list[TelemetryEvent]:
        """The events committed since the last poll; with ``limit`` it stops at the first batch that reaches so many.

        Raises :class:`JournalChanged` when the file was truncated, replaced by another or deleted meanwhile, and
        :class:`JournalDamaged` when committed bytes are not what was written.
        """
        self._check_unchanged()
        if not self._cursor.directory.is_dir():
            return []
        events: list[TelemetryEvent] = []
        with closing(self._cursor.batches()) as batches:
            for batch in batches:
                events += self._cursor.take(batch, self._validate)
                if limit is not None and len(events) >= limit:
                    break
        return events

    def _check_unchanged(self) -> None:
        """A file put in its place (by a copying tool) is accepted if it holds the same last commit."""
        position = self._cursor.position
        if position is None:
            return
        path = segment_path(self._cursor.directory, position.segment)
        try:
            with open_segment(path) as file:
                size = file.seek(0, 2)
                ending = b'"crc32":%d}}\n' % position.crc32
                file.seek(max(0, position.offset - len(ending)))
                same = file.read(min(position.offset, len(ending))) == ending
            if size < position.offset:
                raise JournalChanged(path, size, f"it was truncated from {position.offset} or more to {size} bytes")
            if not same:
                header = read_header(path)
                same = header is not None and header[1] == position
        except FileNotFoundError:
            raise JournalChanged(path, position.offset, "it was deleted while it was being followed") from None
        if not same:
            raise JournalChanged(path, position.offset, "it was replaced by another file while it was being followed")


__all__ = [
    "Batch",
    "Gap",
    "JournalChanged",
    "JournalDamaged",
    "JournalTail",
    "Position",
    "ReadReport",
    "Reading",
    "Rewind",
    "TornTail",
    "read_journal",
]
