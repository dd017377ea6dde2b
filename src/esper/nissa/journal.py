"""Writing a run's journal: batches of events with commit lines, in append-only segments."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Final, NoReturn, Self

from esper.leyline import SCHEMA_VERSION, EsperError, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.leyline.files import Folder, fsync_directory, sync_data, write_all
from esper.nissa.compressed import SUFFIX, compress, size_of
from esper.nissa.segments import (
    FORMAT_VERSION,
    MAX_BATCH_BYTES,
    Closes,
    Header,
    Position,
    SegmentScan,
    commit_line,
    encode_header,
    list_segments,
    read_event_ids,
    read_header,
    segment_path,
)
from esper.nissa.wire import encode

SYNC_ON: Final = frozenset(
    {
        T.SEED_GATE_EVALUATED,
        T.CHECKPOINT_SAVED,
        T.GOVERNOR_ROLLBACK,
        T.EPISODE_ENDED,
        T.TRAINING_STARTED,
        T.TRAINING_ENDED,
    }
)
"""Events that must also survive a power cut: the batch that holds one goes to the disk as soon as it is written."""


MAX_EVENT_BYTES: Final = MAX_BATCH_BYTES // 2
_MOST_BATCHES: Final = 8
"""So many batches may be waiting for the thread before the producer waits for it."""


class JournalWriteError(EsperError):
    """The journal could not be written. What was committed before stays readable."""


@dataclass(frozen=True, slots=True)
class Supersede:
    """A resume from a checkpoint: ``producer``'s events after ``after_seq`` (0 = all) no longer count."""

    producer: str
    after_seq: int
    end: tuple[int, int] | None = None
    """:func:`last_segment` when the checkpoint was looked for: one that has moved since is not superseded."""


def last_segment(directory: Path) -> tuple[int, int] | None:
    """Number and bytes of the last segment; ``None`` where there is none. It moves whenever a writer says something."""
    segments = list_segments(directory)
    if not segments:
        return None
    number = max(segments)
    return number, size_of(segments[number])


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """When a batch is written, synced and when a segment is full."""

    batch_events: int = 512
    batch_bytes: int = 1 << 20
    """An event longer than ``batch_bytes / batch_events`` ends its batch, so that none is much longer than this."""
    batch_seconds: float = 0.1
    """How long an event may wait for its commit. A killed process loses at most this."""
    sync_seconds: float = 1.0
    """How long a commit may wait for the disk. A power cut loses at most this."""
    segment_bytes: int = 64 << 20
    compress_bytes: int = 1 << 20
    """A closed segment is compressed from so many bytes on."""


class _Request:
    """Asks the thread for a round."""

    def __init__(self, *, sync: bool = False, close: bool = False) -> None:
        self.sync = sync
        self.close = close
        self._done: SimpleQueue[None] = SimpleQueue()

    def done(self) -> None:
        """The round is over, well or not."""
        self._done.put(None)

    def wait(self, seconds: float) -> bool:
        """Whether the round was over within so many seconds."""
        try:
            self._done.get(timeout=seconds)
        except Empty:
            return False
        return True


def plain_segments(directory: Path, least: int) -> list[Path]:
    """Segments of so many bytes that are not compressed. Raises ``OSError``."""
    paths = list_segments(directory).values()
    return [path for path in paths if path.suffix != SUFFIX and path.stat().st_size >= least]


def compress_journal(directory: Path, least: int) -> None:
    """Compress what :func:`plain_segments` has of a journal that nobody writes.

    Of what killed writes have left, temporary files beside the journal go; unfinished checkpoints stay for a resume.
    Raises ``UsageError`` where somebody does, ``OSError`` and ``DataError`` for what cannot be done; it is whole then.
    """
    with Folder.open(directory) as folder:
        try:
            folder.lock()
        except BlockingIOError:
            raise UsageError(f"{directory}: the run is being written") from None
        folder.sweep()
        for path in plain_segments(directory, least):
            for _ in compress(path):
                pass


class JournalWriter:
    """The sink that writes the journal of one run; one writer per directory, kept apart by a lock.

    Events are encoded as they arrive; a thread of the writer's own commits them, a batch at a time. Signals interrupt
    only the main thread, so that Ctrl-C cannot strike between a batch and its commit line. ``flush`` returns once
    everything so far is committed (it survives ``kill -9``), ``sync`` once it is on the disk (it survives a power cut).
    Closed segments are compressed by the same thread, a mebibyte between two commits. One that cannot be (the disk or
    memory is full) or was not yet when the writer closed stays as it is, whole, and the next writer begins with it.
    After a failed write every call raises :class:`JournalWriteError`.
    """

    required = True

    def __init__(
        self,
        directory: str | Path,
        run_id: str,
        *,
        supersede: Supersede | None = None,
        config: JournalConfig | None = None,
    ) -> None:
        """Raises ``UsageError`` where the directory cannot be written, is being written by another process or was since
        the checkpoint of ``supersede`` was looked for, or holds a journal already (and ``supersede`` is ``None``) or
        none (and it is not)."""
        self.directory = Path(directory)
        self.run_id = run_id
        self.events = 0
        """Events committed by this writer."""
        self._config = config or JournalConfig()
        self._batch_events = self._config.batch_events
        self._large = self._config.batch_bytes // self._config.batch_events
        self._pending: list[bytes] = []
        self._last_seq: int | None = None
        self._sync_soon = False
        self._unsynced = False
        self._synced_at = time.monotonic()
        self._failure: str | None = None
        self._told = False
        self._lock_fd = self._lock_directory()
        try:
            if supersede is not None and supersede.end not in (None, last_segment(self.directory)):
                raise UsageError(
                    f"{self.directory}: another process went on with this run while its checkpoint was looked for; "
                    "resume it once more"
                )
            previous = self._find_end(resuming=supersede is not None)
            self._fd, self._path, self._position = self._open_segment(previous, supersede)
            closed = plain_segments(self.directory, self._config.compress_bytes)
            self._closed = [path for path in closed if path != self._path]
        except OSError as error:
            os.close(self._lock_fd)
            raise UsageError(f"{self.directory}: no journal can be written here: {error.strerror}") from None
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._compressing: Generator[None, None, None] | None = None
        self._closing = False
        # C primitives only: an exception raised by a signal handler leaves no Python-level lock held
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="esper-journal", daemon=True)
        self._thread.start()

    def __call__(self, event: TelemetryEvent) -> None:
        line = encode(event)
        if self._failure is not None:
            self._raise()
        if len(line) > MAX_EVENT_BYTES:
            raise JournalWriteError(f"{event.event_type.name} of {len(line)} bytes is too long for a journal")
        pending = self._pending
        pending.append(line)
        if event.event_type in SYNC_ON:
            self._sync_soon = True
        if len(pending) == self._batch_events:
            self._requests.put(_Request())
        elif len(pending) >= self._batch_events * _MOST_BATCHES or len(line) > self._large:
            self.flush()

    def flush(self) -> None:
        """Return when every event taken so far is committed."""
        self._ask(_Request())

    def sync(self) -> None:
        """Return when every event taken so far is on the disk."""
        self._ask(_Request(sync=True))

    def close(self) -> None:
        """Commit what is left, mark the journal as closed, sync, let go. Raises a failure that no call raised yet."""
        if self._closing:
            return
        try:
            if not self._told:
                self._ask(_Request(sync=True, close=True))
        finally:
            self._closing = True
            self._failure = self._failure or f"{self._path}: the journal is closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def segment(self) -> Path:
        """The segment being written."""
        return self._path

    def _lock_directory(self) -> int:
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UsageError(f"{self.directory}: cannot be opened as a run directory: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(f"{self.directory}: another process is writing this run's journal") from None
        except OSError:
            # some network file systems have no locks; segments are still opened exclusively
            pass
        return descriptor

    def _find_end(self, resuming: bool) -> Position | None:
        """Where the last segment with a commit or header ends; its number is that of the last file there is."""
        segments = list_segments(self.directory)
        if segments and not resuming:
            raise UsageError(f"{self.directory}: holds a journal already; resume it or choose a new run directory")
        if resuming and not segments:
            raise UsageError(f"{self.directory}: holds no journal to resume")
        for number in reversed(segments):
            found = read_header(segments[number])
            if found is None:
                continue
            header, start = found
            if header.run_id != self.run_id:
                raise UsageError(f"{self.directory}: holds the journal of run {header.run_id!r}, not {self.run_id!r}")
            scan = SegmentScan(segments[number], start)
            for _ in scan:
                pass
            return Position(max(segments), scan.position.offset, scan.position.crc32)
        return None if not segments else Position(max(segments), 0, 0)

    def _open_segment(self, previous: Position | None, supersede: Supersede | None) -> tuple[int, Path, Position]:
        number = 1 if previous is None else previous.segment + 1
        header = Header(
            journal=FORMAT_VERSION,
            schema=SCHEMA_VERSION,
            run_id=self.run_id,
            segment=number,
            created=time.time(),
            previous_crc32=previous.crc32 if previous is not None and previous.offset else None,
            producer=supersede.producer if supersede else None,
            supersedes_after=supersede.after_seq if supersede else None,
        )
        path = segment_path(self.directory, number)
        line, start = encode_header(header)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            write_all(descriptor, line)
            fsync_directory(self.directory)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor, path, start

    def _ask(self, request: _Request) -> None:
        """Have the thread do a round now and wait for its end."""
        if self._failure is None:
            self._requests.put(request)
            while not request.wait(seconds=1.0) and self._failure is None:
                if not self._thread.is_alive():
                    self._failure = f"{self._path}: the journal belongs to another process"
        if self._failure is not None:
            self._raise()

    def _raise(self) -> NoReturn:
        self._told = True
        raise JournalWriteError(self._failure)

    def _work(self) -> None:
        """The thread: a round whenever it is asked and when time is up."""
        asked: list[_Request] = []
        try:
            close = False
            while not close:
                for request in asked:
                    request.done()
                asked = self._next_requests()
                sync, close = any(request.sync for request in asked), any(request.close for request in asked)
                # an event is appended before it asks for a sync, so one that has asked by now is in the batch
                soon, self._sync_soon = self._sync_soon, False
                self._commit("journal" if close else None)
                overdue = time.monotonic() - self._synced_at >= self._config.sync_seconds
                if self._unsynced and (sync or soon or overdue):
                    self._sync()
                self._compress()
        except Exception as error:
            what = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
            self._failure = (
                f"{self._path}: the journal cannot be written: {what}; "
                f"the {self.events} events committed before stay readable"
            )
        finally:
            if self._compressing is not None:
                with suppress(OSError):  # what it leaves is swept before the journal is written again
                    self._compressing.close()
            for descriptor in (self._fd, self._lock_fd):
                with suppress(OSError):  # it is closed all the same, and what was committed was synced before
                    os.close(descriptor)
            for request in asked:
                request.done()

    def _next_requests(self) -> list[_Request]:
        """Wait for a request or until time is up; all that were made."""
        requests = []
        with suppress(Empty):
            requests.append(self._requests.get(timeout=self._config.batch_seconds))
            while True:
                requests.append(self._requests.get_nowait())
        return requests

    def _commit(self, closes: Closes | None = None) -> None:
        """Write everything pending as one batch with its commit line."""
        count = len(self._pending)
        if not count and not closes:
            return
        lines = self._pending[:count]
        del self._pending[:count]
        body = b"".join(lines)
        if lines:
            self._last_seq = read_event_ids(lines[-1])[0].seq
        commit, crc = commit_line(body, self._position.crc32, count, self._last_seq, closes)
        written = body + commit
        write_all(self._fd, written)
        self._position = Position(self._position.segment, self._position.offset + len(written), crc)
        self._unsynced = True
        self.events += count
        if not closes and self._position.offset >= self._config.segment_bytes:
            self._rotate()

    def _rotate(self) -> None:
        self._commit("segment")
        self._sync()
        finished, path = self._fd, self._path
        self._fd, self._path, self._position = self._open_segment(self._position, None)
        os.close(finished)
        if path.stat().st_size >= self._config.compress_bytes:
            self._closed.append(path)

    def _compress(self) -> None:
        """One step of compressing what is closed."""
        if self._compressing is None and self._closed:
            self._compressing = compress(self._closed.pop(0))
        if self._compressing is not None:
            done = True
            with suppress(Exception):  # whatever it was, the segment is as it was
                done = next(self._compressing, True) is True
            if done:
                self._compressing = None

    def _sync(self) -> None:
        self._unsynced = False
        self._synced_at = time.monotonic()
        sync_data(self._fd)
