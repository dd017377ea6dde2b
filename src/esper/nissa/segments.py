r"""The journal's format, shared by its writer and its reader.

A journal is a folder of append-only segments ``events-00001.jsonl``, ``events-00002.jsonl``, ... Each holds::

    {"journal":1,"schema":1,"run_id":"...",...,"crc32":12345678}     header
    {"event_type":...}                                               one event a line
    {"commit":{"count":1,"last_seq":7,"crc32":3735928559}}           one line per batch

An event is committed when the commit line of its batch is whole. ``crc32`` covers every byte of the batch up to its own
digits and starts from the one before it: the first of a segment from the header's, the header's from the last one of
the segment before. So bytes that were changed, lost or moved anywhere but at the very end are noticed.

A segment that is closed may be compressed (:mod:`esper.nissa.compressed`). Places in it stay what they were.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal
from zlib import crc32

import msgspec

from esper.leyline import SCHEMA_VERSION, DataError, TelemetryEvent, as_type, decode_json
from esper.leyline.decoding import fault_in_lines, told
from esper.leyline.telemetry import Seconds, Seq
from esper.nissa.compressed import SUFFIX, JournalDamaged, open_segment, size_of, stat_segment, twin
from esper.nissa.wire import NewerSchemaError, WireError, check_all, decode, non_finite_lines, revive

FORMAT_VERSION: Final = 1
MAX_BATCH_BYTES: Final = 64 << 20
"""No writer makes a batch this long; a reader that finds no commit line in so many bytes stops there."""

Closes = Literal["segment", "journal"]

_CHUNK: Final = 1 << 20
_PIECE: Final = 1 << 15
"""Bytes of events to decode at a time; eight times as much, or all, makes indexing a fifth slower."""
_MARK: Final = b'{"commit":'
_LONGEST_COMMIT: Final = 256
_NAME: Final = re.compile(rf"events-(\d{{5,9}})\.jsonl({re.escape(SUFFIX)})?")
_COMMIT: Final = re.compile(
    rb'(\{"commit":\{"count":(0|[1-9]\d{0,15}),"last_seq":(null|[1-9]\d{0,15})(?:,"closes":"(segment|journal)")?,"crc32":)(\d{1,10})\}\}\n'
)
_CLOSES: Final[dict[bytes | None, Closes | None]] = {None: None, b"segment": "segment", b"journal": "journal"}
_events: Final = msgspec.json.Decoder(TelemetryEvent)
_schema_of: Final = attrgetter("schema")


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """First line of a segment."""

    journal: int
    schema: int
    run_id: str
    segment: int
    created: Seconds
    previous_crc32: int | None = None
    """Chained crc at the end of what the segment before has committed; ``None`` in the first."""
    producer: str | None = None
    supersedes_after: Seq | None = None
    """A resumed run: every earlier event after ``producer``'s event of this seq no longer counts."""


@dataclass(frozen=True, slots=True)
class Position:
    """A border between two batches: where a reader can start without having read what is before."""

    segment: int
    offset: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Committed events: ``count`` lines of ``body``, of which the first ``kept`` were not superseded by a resume."""

    file: Path
    start: Position
    end: Position
    body: bytes
    count: int
    kept: int
    last_seq: int | None
    closes: Closes | None
    """The writer ended the segment with this batch, to go on in the next one or because the run was over."""

    def ids(self) -> list[EventId]:
        """Whose events these are, and which. Raises :class:`WireError` (file and offset)."""
        try:
            return read_event_ids(self.body)
        except WireError as error:
            self._one_by_one(slice(None), False)
            raise WireError(error.reason, self.file, self.start.offset) from None

    def events(self, *, superseded: bool = False, validate: bool = False) -> list[TelemetryEvent]:
        """The events that stand, or with ``superseded`` those that do not.

        Raises :class:`WireError` (file and offset) for a line that is no event of this schema.
        """
        wanted = slice(self.kept, None) if superseded else slice(self.kept)
        events = None if validate else _decode_lines(self.body)
        if events is None or len(events) != self.count:
            return self._one_by_one(wanted, validate)
        return events if self.kept == self.count and not superseded else events[wanted]

    def pieces(self) -> Iterator[list[TelemetryEvent]]:
        """The events that stand, decoded a few at a time: a fold then meets them while they are in the cache."""
        at = taken = 0
        while taken < self.kept:
            end = self.body.find(b"\n", min(at + _PIECE, len(self.body) - 1)) + 1
            events = _decode_lines(self.body[at:end])
            if not events:
                yield self._one_by_one(slice(self.kept), False)[taken:]
                return
            yield events[: self.kept - taken]
            at, taken = end, taken + len(events)

    def _one_by_one(self, wanted: slice, validate: bool) -> list[TelemetryEvent]:
        lines = self.body.splitlines(keepends=True)
        events, offset = [], self.start.offset + sum(map(len, lines[: wanted.start or 0]))
        for line in lines[wanted]:
            events.append(decode(line, file=self.file, offset=offset, validate=validate))
            offset += len(line)
        return events


def _decode_lines(body: bytes) -> list[TelemetryEvent] | None:
    """The event of each line; ``None`` when one of them is none of this schema."""
    if fault_in_lines(body):
        return None
    try:
        events: list[TelemetryEvent] = _events.decode_lines(body)
        if max(map(_schema_of, events), default=0) > SCHEMA_VERSION:
            return None
        for number in non_finite_lines(body):
            revive(events[number])
        check_all(events)
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):  # no event for an empty line
        return None
    return events


class EventId(msgspec.Struct, gc=False):
    """Whose event it is, and which."""

    producer: str | None = None
    seq: Seq | None = None


_event_ids: Final = msgspec.json.Decoder(EventId)


def read_event_ids(lines: bytes) -> list[EventId]:
    """Whose events these are, and which, one a line, without the rest of them. Raises :class:`WireError`."""
    if beyond := fault_in_lines(lines):
        raise WireError(beyond)
    try:
        return _event_ids.decode_lines(lines)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(told(error)) from None


def segment_path(directory: Path, number: int) -> Path:
    """Path of segment ``number``, counted from 1."""
    return directory / f"events-{number:05d}.jsonl"


def list_segments(directory: Path) -> dict[int, Path]:
    """number -> path of the segments in ``directory``, in order; of one that is there in both forms the first one."""
    found: dict[int, Path] = {}
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for name in sorted(names, reverse=True):
        if (match := _NAME.fullmatch(name)) is not None:
            found[int(match[1])] = directory / name
    for number in range(1, max(found, default=0)):
        # a folder is not listed at one moment: a segment may change its form between its two names
        if number not in found:
            path = segment_path(directory, number)
            for each in (twin(path), path):
                if each.exists():
                    found[number] = each
    return dict(sorted(found.items()))


def journal_bytes(directory: Path) -> list[int]:
    """Bytes of each segment in ``directory``, as they are when they are not compressed."""
    return [size_of(path) for path in list_segments(directory).values()]


def commit_line(
    body: bytes, crc: int, count: int, last_seq: int | None, closes: Closes | None = None
) -> tuple[bytes, int]:
    """The line that commits ``body`` after ``crc``, and the crc that the next one starts from."""
    last = "null" if last_seq is None else str(last_seq)
    ending = f',"closes":"{closes}"' if closes else ""
    prefix = f'{{"commit":{{"count":{count},"last_seq":{last}{ending},"crc32":'.encode()
    chained = crc32(prefix, crc32(body, crc))
    return b"%s%d}}\n" % (prefix, chained), chained


def encode_header(header: Header) -> tuple[bytes, Position]:
    """The header as the first line of its segment, and the position behind it."""
    prefix = msgspec.json.encode(header)[:-1] + b',"crc32":'
    crc = crc32(prefix, header.previous_crc32 or 0)
    line = b"%s%d}\n" % (prefix, crc)
    return line, Position(header.segment, len(line), crc)


def read_header(path: Path) -> tuple[Header, Position] | None:
    """Header and the position behind it; ``None`` when the file ends before its first line does.

    Raises :class:`JournalDamaged` and :class:`NewerSchemaError`.
    """
    with open_segment(path) as file:
        line = file.readline(1 << 16)
    if not line.endswith(b"\n"):
        if len(line) == 1 << 16:
            raise JournalDamaged(path, 0, "the first line is no header")
        return None
    try:
        loose = decode_json(line, "the first line is no header", dict[str, Any])
        for key, known in (("journal", FORMAT_VERSION), ("schema", SCHEMA_VERSION)):
            if isinstance(loose.get(key), int) and loose[key] > known:
                raise NewerSchemaError(
                    f"newer schema: {key} version {loose[key]}, this version reads up to {known}; upgrade Esper",
                    path,
                    0,
                )
        stored = loose.pop("crc32", None)
        header = as_type(loose, "the first line is no header", Header)
    except NewerSchemaError:
        raise
    except DataError as error:
        raise JournalDamaged(path, 0, str(error)) from None
    written, start = encode_header(header)
    if stored != start.crc32 or line != written:
        raise JournalDamaged(path, 0, f"the header is not what was written (checksum {start.crc32}, stored {stored})")
    return header, start


def _find_commit(buffer: bytes, at: int, searched: int) -> tuple[int, int] | None:
    """Start and end of the first whole commit line in ``buffer`` from ``at``, where a line starts; up to ``searched``
    there is none that begins.
    """
    start = at
    if not buffer.startswith(_MARK, at):
        start = buffer.find(b"\n" + _MARK, max(at, searched)) + 1
        if start == 0:
            return None
    end = buffer.find(b"\n", start) + 1
    return (start, end) if end else None


class SegmentScan:
    """Reads the committed batches of one segment from ``start``; afterwards ``position`` and ``tail`` say how it ended.

    Iterating once more continues where it ended, with what was written since.
    """

    def __init__(self, path: Path, start: Position, *, closes: Closes | None = None, salvage: bool = False) -> None:
        self.path = path
        self.position = start
        self.closes = closes
        self.tail = b""
        """Bytes behind the last commit line: a batch that was being written."""
        self.damage: list[JournalDamaged] = []
        """What was skipped; only with ``salvage``."""
        self._salvage = salvage

    def __iter__(self) -> Iterator[Batch]:
        buffer = b""
        try:
            opened = open_segment(self.path, salvage=self._salvage)
        except JournalDamaged as damage:
            if not self._salvage:
                raise
            self.damage.append(damage)
            return
        with opened as file:
            file.seek(self.position.offset)
            while chunk := file.read(max(_CHUNK, len(buffer))):
                searched = len(buffer) - _LONGEST_COMMIT
                buffer += chunk
                at = 0
                while (border := _find_commit(buffer, at, searched)) is not None:
                    batch = self._verify(buffer[at : border[0]], buffer[border[0] : border[1]])
                    at = border[1]
                    if batch is not None:
                        yield batch
                buffer = buffer[at:]
                if len(buffer) > MAX_BATCH_BYTES:
                    limit = f"no commit line within {MAX_BATCH_BYTES >> 20} MiB"
                    raise JournalDamaged(self.path, self.position.offset, limit)
        self.tail = buffer
        if self.closes and buffer:
            self._damaged("bytes behind the commit that closed the segment")

    def _verify(self, body: bytes, commit: bytes) -> Batch | None:
        start = self.position
        match = _COMMIT.fullmatch(commit)
        count = body.count(b"\n")
        reason = ""
        if self.closes:
            reason = "a batch behind the commit that closed the segment"
        elif match is None:
            reason = f"malformed commit line {commit[:80]!r}"
        elif (crc := crc32(match[1], crc32(body, start.crc32))) != int(match[5]):
            reason = f"checksum {crc} of the batch is not the committed {int(match[5])}"
        elif count != int(match[2]):
            reason = f"{count} events in a batch that committed {int(match[2])}"
        stored = int(match[5]) if match else start.crc32
        end = Position(start.segment, start.offset + len(body) + len(commit), stored)
        if reason or match is None:
            self._damaged(reason)
            self.position = end
            return None
        self.position = end
        self.closes = _CLOSES[match[4]]
        last_seq = None if match[3] == b"null" else int(match[3])
        return Batch(self.path, start, end, body, count, count, last_seq, self.closes)

    def _damaged(self, reason: str) -> None:
        error = JournalDamaged(self.path, self.position.offset, reason)
        if not self._salvage:
            raise error
        self.damage.append(error)


__all__ = [
    "FORMAT_VERSION",
    "Batch",
    "Header",
    "JournalDamaged",
    "Position",
    "SegmentScan",
    "WireError",
    "commit_line",
    "encode_header",
    "journal_bytes",
    "list_segments",
    "open_segment",
    "read_header",
    "read_event_ids",
    "segment_path",
    "stat_segment",
]
