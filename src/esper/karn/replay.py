"""Replay: the same fold at another time.

A :class:`Timeline` reads a journal once, keeps the folded state every few thousand events (*keyframes*) in a cache
outside the run directory, and from then on gives the state after any event in a fraction of a second: the nearest
keyframe plus the events behind it.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import functools
import gc
import hashlib
import itertools
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from esper._version import __version__
from esper.karn import state as states
from esper.karn.aggregator import apply
from esper.karn.schema import Damage
from esper.karn.source import damage_of, report_damage
from esper.karn.state import RunState
from esper.leyline import DataError, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.ahead import DecodedBatch, read_ahead
from esper.nissa.compressed import zstandard
from esper.nissa.reader import Batch, Position, Reading, read_journal
from esper.nissa.segments import journal_bytes, list_segments, read_header

KEYFRAME_EVENTS: Final = 4096
"""Fewest events between keyframes; with twice as many, seeks come near a fifth of a second."""
BYTES_PER_EVENT: Final = 60
"""A keyframe of ``n`` bytes is written after at least ``n / BYTES_PER_EVENT`` events, to bound time and disk."""
AHEAD: Final = 32 << 20
"""From so many bytes on another process reads and decodes while this one folds, if there is a core for it."""
PATIENCE: Final = 60.0
"""Most seconds to wait for another reader of the same journal."""
KEPT_RUNS: Final = 20
"""Caches of so many runs are kept, the most recently used ones."""

MARKED: Final = frozenset(
    {
        T.TRAINING_STARTED,
        T.TRAINING_ENDED,
        T.SEED_GERMINATED,
        T.SEED_FOSSILIZED,
        T.SEED_PRUNED,
        T.GOVERNOR_PANIC,
        T.GOVERNOR_ROLLBACK,
        T.CHECKPOINT_LOADED,
    }
)
"""Events that get a mark on the scrubber."""
MARKS: Final = 2000

ReadProgress = Callable[[int, int], None]
"""Called with bytes read and bytes in all."""


class Mark(msgspec.Struct, array_like=True, gc=False):
    """A notable event on the scrubber; ``events`` is how many were folded when it had been."""

    events: int
    time: float | None
    type: str
    env: int | None


class Keyframe(msgspec.Struct, array_like=True, gc=False):
    """State after ``events`` events; the journal goes on at ``segment``, ``offset``."""

    events: int
    time: float | None
    segment: int
    offset: int
    crc32: int
    file: str
    digest: int
    """crc32 of the encoded state."""


class _Index(msgspec.Struct):
    identity: str
    keyframes: list[Keyframe] = []
    marks: list[Mark] = []
    mark_every: int = 1
    marks_seen: int = 0


class Timeline:
    """The whole of a journal, at any of its moments.

    ``cache`` is where keyframes go (``$XDG_CACHE_HOME/esper/overwatch`` by default); a cache that cannot be written is
    done without, from a temporary directory. ``progress`` is told about the first pass.
    """

    def __init__(
        self, directory: str | Path, *, cache: str | Path | None = None, progress: ReadProgress | None = None
    ) -> None:
        self.directory = Path(directory)
        self._reading: Reading = read_journal(self.directory)
        self._stopped: Damage | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        identity = _identity(self.directory)
        self._cache = self._open_cache(Path(cache) if cache is not None else cache_home(), identity)
        self._stored: Future[None] = Future()
        self._stored.set_result(None)
        self._state = RunState()
        self._rest: Iterator[TelemetryEvent] = iter(())
        with _turn(self._cache):
            self._index = _load(self._cache, identity)
            self._jump(self._index.keyframes[-1] if self._index.keyframes else None)
            self._read_to_end(progress)

    @property
    def events(self) -> int:
        """Events in the journal when it was last read to its end."""
        return self._end.events

    @property
    def end_time(self) -> float | None:
        """Time of the newest event."""
        return self._end.last_time

    @property
    def start_time(self) -> float | None:
        """Time of the first event."""
        return self._end.first_time

    @property
    def marks(self) -> list[Mark]:
        """Notable events for the scrubber, thinned evenly when there are too many."""
        return list(self._index.marks)

    @property
    def marks_seen(self) -> int:
        """Notable events there are; more than ``marks`` when those were thinned."""
        return self._index.marks_seen

    @property
    def damage(self) -> list[Damage]:
        """What the reader met."""
        stopped = [] if self._stopped is None else [self._stopped]
        return [*report_damage(self._reading.report), *stopped]

    @property
    def end(self) -> tuple[bytes, Position | None]:
        """Encoded state and place at the end of the journal, for a :class:`~esper.karn.source.Follower` to go on."""
        return self._end_bytes, self._end_position

    def at(self, events: int) -> RunState:
        """State after the first ``events`` events (at most all of them). The next call may change it in place."""
        events = max(0, min(events, self.events))
        if not self._near(events):
            keyframes = self._index.keyframes
            place = bisect.bisect_right(keyframes, events, key=lambda keyframe: keyframe.events)
            self._jump(keyframes[place - 1] if place else None)
        while self._state.events < events and (event := next(self._rest, None)) is not None:
            apply(self._state, event)
        return self._state

    def at_time(self, time: float) -> RunState:
        """State when the clock stood at ``time``: after all events that came before any later one."""
        keyframes, here = self._index.keyframes, self._state
        place = bisect.bisect_right(keyframes, time, key=lambda keyframe: keyframe.time or 0.0)
        best = keyframes[place - 1] if place else None
        ahead = here.last_time is not None and here.last_time > time
        if ahead or (best is not None and best.events > here.events):
            self._jump(best)
        for event in self._rest:
            if event.timestamp is not None and event.timestamp > time:
                self._rest = _chain(event, self._rest)
                break
            apply(self._state, event)
        return self._state

    def history(
        self, wanted: Callable[[TelemetryEvent], bool], before: int, limit: int
    ) -> Iterator[tuple[int, TelemetryEvent]]:
        """The newest ``limit`` events among the first ``before`` that ``wanted`` holds for, newest first.

        Each comes with its place (how many events there are up to and with it). The filter comes before the limit, so
        nothing that matches is hidden by what does not.
        """
        keyframes = self._index.keyframes
        end, place = before, bisect.bisect_left(keyframes, before, key=lambda keyframe: keyframe.events)
        while limit > 0 and end > 0:
            keyframe = keyframes[place - 1] if place else None
            start = None if keyframe is None else Position(keyframe.segment, keyframe.offset, keyframe.crc32)
            first = 0 if keyframe is None else keyframe.events
            chunk = enumerate(itertools.islice(self._events(start), end - first), first + 1)
            matches = [(at, event) for at, event in chunk if wanted(event)]
            yield from reversed(matches[-limit:])
            limit -= len(matches)
            end, place = first, place - 1

    def close(self) -> None:
        """Forget a temporary cache."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def _near(self, events: int) -> bool:
        """Whether going forward from where we are is no further than from the best keyframe."""
        here = self._state.events
        if here > events:
            return False
        keyframes = self._index.keyframes
        place = bisect.bisect_right(keyframes, events, key=lambda keyframe: keyframe.events)
        return not place or keyframes[place - 1].events <= here

    def _jump(self, keyframe: Keyframe | None) -> None:
        state = None if keyframe is None else _restore(self._cache, keyframe)
        if keyframe is not None and state is None:
            earlier = [known for known in self._index.keyframes if known.events < keyframe.events]
            self._jump(earlier[-1] if earlier else None)
            return
        self._state = RunState() if state is None else state
        start = None if keyframe is None else Position(keyframe.segment, keyframe.offset, keyframe.crc32)
        self._rest = self._events(start)

    def _events(self, start: Position | None) -> Iterator[TelemetryEvent]:
        try:
            for batch in self._reading.batches(start):
                for piece in batch.pieces():
                    yield from piece
        except (DataError, OSError) as problem:
            self._stopped = damage_of(problem)

    def _read_to_end(self, progress: ReadProgress | None) -> None:
        index, state = self._index, self._state
        last = index.keyframes[-1].events if index.keyframes else 0
        start = None
        if index.keyframes and state.events == last:
            keyframe = index.keyframes[-1]
            start = Position(keyframe.segment, keyframe.offset, keyframe.crc32)
        elif state.events != last:
            # a stored keyframe could not be read back: what is indexed is not what is there
            self._index = index = _Index(index.identity)
            state, last = RunState(), 0
        self._end_position, spacing, grown = start, KEYFRAME_EVENTS, False
        with ThreadPoolExecutor(1) as self._storing, _no_collection():
            try:
                for batch in self._to_end(start, progress):
                    if state.events - last >= spacing:
                        last, grown = state.events, True
                        spacing = max(KEYFRAME_EVENTS, self._keep(state, batch.start) // BYTES_PER_EVENT)
                    self._fold(state, batch)
                    self._end_position = batch.end
                self._stored.result()
            except (DataError, OSError) as problem:
                self._stopped = damage_of(problem)
        if grown:
            _store(self._cache / "index.msgpack", msgspec.msgpack.encode(index))
        self._end_bytes = states.encode(state)
        self._end = state
        self._jump(None)

    def _to_end(self, start: Position | None, progress: ReadProgress | None) -> Iterator[Batch | DecodedBatch]:
        """Batches from ``start`` on, read ahead while they are many."""
        sizes = journal_bytes(self.directory)
        total = sum(sizes)

        def bytes_before(position: Position | None) -> int:
            return 0 if position is None else sum(sizes[: position.segment - 1]) + position.offset

        ways: list[Callable[[], Iterator[Batch | DecodedBatch]]] = [lambda: self._reading.batches(start)]
        if total - bytes_before(start) >= AHEAD and spare_core():
            ways.insert(0, lambda: read_ahead(self.directory, start))
        for way in ways:
            for batch in way():
                yield batch
                start = batch.end
                if progress is not None:
                    done = bytes_before(start)
                    # a running journal grows while it is read
                    progress(done, max(done, total))

    def _fold(self, state: RunState, batch: Batch | DecodedBatch) -> None:
        for piece in batch.pieces():
            for event in piece:
                apply(state, event)
                if event.event_type in MARKED:
                    self._mark(state.events, event)

    def _mark(self, events: int, event: TelemetryEvent) -> None:
        index = self._index
        if index.marks_seen % index.mark_every == 0:
            index.marks.append(Mark(events, event.timestamp, event.event_type.value, event.env_id))
        index.marks_seen += 1
        if len(index.marks) > MARKS:
            index.marks = index.marks[::2]
            index.mark_every *= 2

    def _keep(self, state: RunState, position: Position) -> int:
        """Store a keyframe and return its size in memory."""
        data = states.encode(state)
        name = f"{state.events}.keyframe"
        self._stored.result()
        self._stored = self._storing.submit(_pack, self._cache / name, data)
        place = (position.segment, position.offset, position.crc32)
        self._index.keyframes.append(Keyframe(state.events, state.last_time, *place, name, zlib.crc32(data)))
        return len(data)

    def _open_cache(self, home: Path, identity: str) -> Path:
        directory = home / identity
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "lock").touch()
            os.utime(directory)
            _forget_old(home)
            return directory
        except OSError:
            self._scratch = tempfile.TemporaryDirectory(prefix="esper-overwatch-")
            return Path(self._scratch.name)


@contextlib.contextmanager
def _turn(cache: Path) -> Iterator[None]:
    """Wait for another reader of the same journal, here or in another process: what it found is in the cache then."""
    with (cache / "lock").open("a") as file:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield


def spare_core() -> bool:
    """Whether a core was idle in the last minute; where none is, two processes take turns and are slower than one."""
    mine = getattr(os, "sched_getaffinity", None)  # not on every Unix
    cores = len(mine(0)) if mine is not None else os.cpu_count() or 1
    return os.getloadavg()[0] <= cores - 1


def cache_home() -> Path:
    """Where keyframes are kept: ``$XDG_CACHE_HOME/esper/overwatch``, or under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "esper" / "overwatch"


@functools.cache
def folding_code() -> bytes:
    """Digest of this package's source and version: keyframes that other code made are not used."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join([__version__.encode(), *(path.read_bytes() for path in sources)])).digest()


def _identity(directory: Path) -> str:
    """Name of a journal's cache: its headers (run, resumes, first crc) and the code that folds it."""
    digest = hashlib.sha256(folding_code())
    for number, path in list_segments(directory).items():
        with contextlib.suppress(DataError):
            header = read_header(path)
            if header is not None:
                digest.update(f"{number} {header[1].crc32} {header[0]}".encode())
    return digest.hexdigest()[:32]


def _load(cache: Path, identity: str) -> _Index:
    """The stored index, or an empty one when there is none that can be used."""
    try:
        index = msgspec.msgpack.decode((cache / "index.msgpack").read_bytes(), type=_Index)
    except (OSError, ValueError):
        return _Index(identity)
    return index if index.identity == identity else _Index(identity)


def _restore(cache: Path, keyframe: Keyframe) -> RunState | None:
    """A stored state; ``None`` when it is gone or not what was stored."""
    try:
        data = zstandard().decompress((cache / keyframe.file).read_bytes())
        return states.decode(data) if zlib.crc32(data) == keyframe.digest else None
    except (OSError, ValueError, zstandard().ZstdError):
        return None


def _pack(path: Path, data: bytes) -> None:
    """Compress and store; both let other threads run."""
    _store(path, zstandard().compress(data, 1))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles meanwhile: a fold makes none, and its state is much to search."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _store(path: Path, data: bytes) -> None:
    """Write a cache file whole or not at all; another Overwatch may write the same one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _forget_old(home: Path) -> None:
    caches = sorted((entry for entry in home.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
    for old in caches[:-KEPT_RUNS]:
        shutil.rmtree(old, ignore_errors=True)


def _chain(event: TelemetryEvent, rest: Iterator[TelemetryEvent]) -> Iterator[TelemetryEvent]:
    yield event
    yield from rest
