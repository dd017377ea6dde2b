from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from event_strategies import note, same_event
from journal_kit import RUN, committed_lines, leave, write

from esper.leyline import EsperError, TelemetryEvent, TelemetryEventType, UsageError
from esper.leyline.files import write_all
from esper.nissa import journal as journal_module
from esper.nissa.hub import NissaHub, TelemetryError
from esper.nissa.journal import SYNC_ON, JournalConfig, JournalWriteError, JournalWriter, Supersede
from esper.nissa.reader import read_journal
from esper.nissa.segments import segment_path

NEVER = JournalConfig(batch_seconds=3600)


def stamped(count: int, first: int = 1) -> list[TelemetryEvent]:
    return [note(f"x{seq}", producer="train", seq=seq) for seq in range(first, first + count)]


def test_nothing_is_in_the_file_before_the_commit_and_everything_after(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path, RUN, config=NEVER)
    for event in stamped(3):
        journal(event)
    assert committed_lines(journal.segment) == []
    journal.flush()
    assert len(committed_lines(journal.segment)) == 3
    journal.flush()
    assert journal.segment.read_bytes().count(b"commit") == 1, "an empty batch is not written"
    journal.close()
    journal.close()
    assert read_journal(tmp_path).report.closed is False
    assert len(list(read_journal(tmp_path))) == 3
    with pytest.raises(JournalWriteError, match="closed"):
        journal(note())


def committed_in_time(sink: JournalWriter, count: int) -> bool:
    deadline = time.monotonic() + 10
    while len(committed_lines(sink.segment)) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    return len(committed_lines(sink.segment)) == count


def test_a_batch_is_committed_when_it_is_full_by_count_or_by_bytes(tmp_path: Path) -> None:
    config = JournalConfig(batch_events=4, batch_bytes=1600, batch_seconds=3600)
    with JournalWriter(tmp_path, RUN, config=config) as sink:
        for event in stamped(3):
            sink(event)
        time.sleep(0.05)
        assert committed_lines(sink.segment) == []
        sink(note())
        assert committed_in_time(sink, 4)
        sink(note("y" * 500))
        assert len(committed_lines(sink.segment)) == 5


def test_a_producer_that_is_too_quick_waits_for_the_thread(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, RUN, config=JournalConfig(batch_events=4, batch_seconds=3600)) as sink:
        for event in stamped(500):
            sink(event)
            assert len(sink._pending) <= 4 * 8
    assert len(list(read_journal(tmp_path))) == 500


def test_a_batch_is_committed_in_time_without_another_event(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, RUN, config=JournalConfig(batch_seconds=0.01)) as sink:
        sink(note())
        assert committed_in_time(sink, 1)


@pytest.mark.free_text
def test_gates_and_checkpoints_go_to_the_disk_at_once_and_the_rest_each_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    monkeypatch.setattr(journal_module, "sync_data", lambda fd: synced.append(time.monotonic()))
    config = JournalConfig(batch_seconds=0.005, sync_seconds=3600)
    with JournalWriter(tmp_path, RUN, config=config) as sink:
        sink(note())
        time.sleep(0.1)
        assert not synced
        for count, kind in enumerate(sorted(SYNC_ON), start=1):
            sink(TelemetryEvent(event_type=kind))
            deadline = time.monotonic() + 10
            while len(synced) < count and time.monotonic() < deadline:
                time.sleep(0.002)
            assert len(synced) == count
        sink(note())
        sink.sync()
        assert len(synced) == len(SYNC_ON) + 1
    assert len(synced) == len(SYNC_ON) + 2, "and at the end"
    with JournalWriter(
        tmp_path, RUN, supersede=Supersede("train", 0), config=JournalConfig(0x200, 1, 0.01, 0.05)
    ) as sink:
        synced.clear()
        sink(note())
        deadline = time.monotonic() + 10
        while not synced and time.monotonic() < deadline:
            time.sleep(0.002)
        assert synced


def test_segments_rotate_and_each_is_closed(tmp_path: Path) -> None:
    emitted = write(tmp_path, [20, 20, 20], segment_bytes=2_000)
    files = sorted(tmp_path.glob("events-*.jsonl"))
    assert len(files) >= 3
    for path in files:
        last = b'"closes":"journal"' if path == files[-1] else b'"closes":"segment"'
        assert last in path.read_bytes().splitlines()[-1]
    assert all(map(same_event, read_journal(tmp_path), emitted))


def test_events_from_many_threads_are_all_there_once(tmp_path: Path) -> None:
    hub = NissaHub()
    hub.add_sink(JournalWriter(tmp_path, RUN, config=JournalConfig(batch_events=7, batch_seconds=0.001)))

    def produce(name: str) -> None:
        for number in range(300):
            hub.emit(note(f"{name}-{number}"))

    threads = [threading.Thread(target=produce, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.close()
    events = list(read_journal(tmp_path))
    assert [event.seq for event in events] == list(range(1, 1202))
    assert len({event.data.get("reason") for event in events}) == 1201


def test_one_writer_per_directory_and_never_over_an_old_journal(tmp_path: Path) -> None:
    first = JournalWriter(tmp_path, RUN)
    with pytest.raises(UsageError, match="another process is writing"):
        JournalWriter(tmp_path, RUN, supersede=Supersede("train", 0))
    first.close()
    with pytest.raises(UsageError, match="holds a journal already"):
        JournalWriter(tmp_path, RUN)
    with pytest.raises(UsageError, match="holds the journal of run"):
        JournalWriter(tmp_path, "another", supersede=Supersede("train", 0))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no journal to resume"):
        JournalWriter(empty, RUN, supersede=Supersede("train", 0))
    with pytest.raises(UsageError, match="cannot be opened"):
        JournalWriter(tmp_path / "missing", RUN)
    JournalWriter(tmp_path, RUN, supersede=Supersede("train", 0)).close()


def test_a_resume_truncates_nothing(tmp_path: Path) -> None:
    write(tmp_path, [5], close=False)
    path = segment_path(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b"torn")
    before = path.read_bytes()
    write(tmp_path, [1], after_seq=2)
    assert path.read_bytes() == before


def no_space(after_bytes: int) -> object:
    left = [after_bytes]

    def write_some(descriptor: int, data: bytes) -> None:
        if len(data) > left[0]:
            os.write(descriptor, data[: left[0]])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        write_all(descriptor, data)

    return write_some


def test_a_full_disk_is_one_clear_error_wherever_it_strikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in range(200, 4_000, 97):
        directory = tmp_path / str(limit)
        directory.mkdir()
        monkeypatch.setattr(journal_module, "write_all", no_space(limit))
        journal = JournalWriter(
            directory, RUN, config=JournalConfig(batch_events=3, batch_seconds=3600, segment_bytes=1500)
        )
        hub = NissaHub()
        hub.add_sink(journal, name="journal")
        seen: list[TelemetryEvent] = []
        hub.add_sink(seen.append, name="list")
        errors = []
        for number in range(60):
            try:
                hub.emit(note(f"x{number}"))
                if number % 3 == 0:
                    hub.flush()
            except EsperError as error:
                errors.append(str(error))
        hub.close()
        (error,) = errors
        assert error.startswith("telemetry sink 'journal' failed: ") and "No space left on device" in error
        assert f"the {journal.events} events committed before stay readable" in error
        events = list(read_journal(directory))
        assert len(events) == journal.events and all(map(same_event, events, seen))
        missed = sum(drop.count for drop in hub.drops if drop.sink == "journal")
        assert len(events) + missed >= len(seen) - 3, "but for the batch that failed, every event is there or counted"


def test_a_file_that_cannot_be_closed_is_no_second_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thread would print a traceback, keep the lock, and let the next call wait."""
    journal = JournalWriter(tmp_path, RUN)
    ours, close = journal._fd, os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        if descriptor == ours:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", failing)
    journal(note("one"))
    journal.close()
    monkeypatch.undo()
    assert "Traceback" not in capsys.readouterr().err
    JournalWriter(tmp_path, RUN, supersede=Supersede("train", 1)).close()


def test_a_file_size_limit_of_the_system_is_met_the_same_way(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        journal = JournalWriter(tmp_path, RUN, config=JournalConfig(batch_events=10, batch_seconds=3600))
        with pytest.raises(JournalWriteError, match="cannot be written: File too large"):
            for event in stamped(1000):
                journal(event)
                if event.seq is not None and event.seq % 10 == 0:
                    journal.flush()
        with pytest.raises(JournalWriteError):
            journal.flush()
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    reading = read_journal(tmp_path)
    assert [event.seq for event in reading] == list(range(1, journal.events + 1)) and journal.events >= 10
    assert reading.report.torn


def test_an_error_of_the_timed_commit_reaches_the_producer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "write_all", no_space(200))
    journal = JournalWriter(tmp_path, RUN, config=JournalConfig(batch_seconds=0.005))
    hub = NissaHub()
    hub.add_sink(journal)
    with pytest.raises(TelemetryError, match="No space left"):
        for _ in range(2000):
            hub.emit(note())
            time.sleep(0.005)
    hub.close()


def test_a_payload_that_cannot_be_written_fails_the_run_by_name(tmp_path: Path) -> None:
    hub = NissaHub()
    hub.add_sink(JournalWriter(tmp_path, RUN), name="journal")
    hub.emit(note("before"))
    with pytest.raises(TelemetryError, match="sink 'journal' failed: TypeError: a payload cannot hold"):
        hub.emit(TelemetryEvent(event_type=TelemetryEventType.SEED_PRUNED, data={"reason": object()}))
    assert [event.data.get("reason") for event in read_journal(tmp_path)] == [None, "before"]
    hub.close()


def test_an_event_too_long_to_be_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_EVENT_BYTES", 1000)
    with JournalWriter(tmp_path, RUN) as journal:
        journal(note("y" * 900))
        with pytest.raises(JournalWriteError, match="COUNTERFACTUAL_UNAVAILABLE of 1.* bytes is too long"):
            journal(note("y" * 1000))
    assert len(list(read_journal(tmp_path))) == 1


class Interruption(BaseException):
    """What a signal handler raises, wherever the main thread is."""


def test_interrupts_at_any_moment_leave_a_whole_journal(tmp_path: Path) -> None:
    """Ctrl-C again and again into emit and flush: a journal in order that misses only what was cut short."""
    armed = [True]

    def strike(number: int, frame: object) -> None:
        if armed[0]:
            raise Interruption

    before = signal.signal(signal.SIGALRM, strike)
    hub = NissaHub()
    hub.add_sink(JournalWriter(tmp_path, RUN, config=JournalConfig(8, batch_seconds=0.001, segment_bytes=20_000)))
    strikes = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0007)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                for number in range(50):
                    hub.emit(note(f"x{number}"))
                hub.flush()
            except Interruption:
                strikes += 1
    except Interruption:
        strikes += 1
    finally:
        armed[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    hub.close()
    reading = read_journal(tmp_path, validate=True)
    seqs = [event.seq for event in reading]
    assert reading.report.closed and seqs == sorted(set(seqs))  # type: ignore[type-var]
    assert strikes > 3 and hub.last_seq - len(seqs) <= strikes
    assert sum(gap.last - gap.first + 1 for gap in reading.report.gaps) <= strikes


def test_an_abandoned_writer_leaves_a_journal_that_is_not_closed(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path, RUN, config=NEVER)
    journal(note())
    journal.flush()
    journal(note())
    leave(journal)
    reading = read_journal(tmp_path)
    assert len(list(reading)) == 1 and not reading.report.closed
