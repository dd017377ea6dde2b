"""Compressed segments: the same bytes to every reader, whatever strikes while one is being compressed."""

from __future__ import annotations

import io
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from event_strategies import note, same_event
from journal_kit import RUN, write

from esper.karn.compare import compare
from esper.karn.runs import describe_run
from esper.leyline import DataError, TelemetryEvent
from esper.nissa import compressed
from esper.nissa.compressed import compress, open_segment, size_of, twin, zstandard
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalConfig, JournalWriter, Supersede
from esper.nissa.reader import JournalDamaged, JournalTail, Reading, read_journal
from esper.nissa.segments import list_segments, segment_path
from forking import fork

COMPRESSED = "events-*.jsonl.zst"


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_FRAME", 700)


def done(path: Path) -> Path:
    for _ in compress(path):
        pass
    return twin(path)


def all_done(directory: Path) -> None:
    for path in list_segments(directory).values():
        if path.suffix != ".zst":
            done(path)


def reads_as(directory: Path, events: list[TelemetryEvent]) -> bool:
    found = list(Reading(directory))
    return len(found) == len(events) and all(map(same_event, found, events))


@pytest.mark.parametrize("length", [0, 1, 699, 700, 701, 1400, 5000])
def test_any_part_is_the_part_that_was_compressed(tmp_path: Path, length: int) -> None:
    dice = random.Random(length)
    plain = bytes(dice.choices(b"abc\n", k=length))
    path = tmp_path / "events-00001.jsonl"
    path.write_bytes(plain)
    os.utime(path, ns=(5, 1_760_000_000_000_000_007))
    kept = done(path)
    assert not path.exists() and [each.name for each in tmp_path.iterdir()] == [kept.name]
    assert kept.stat().st_mtime_ns == 1_760_000_000_000_000_007
    assert zstandard().decompress(kept.read_bytes()) == plain, "any tool gives the lines back"
    assert size_of(path) == size_of(kept) == length
    beside = io.BytesIO(plain)
    with open_segment(path) as file:
        for _ in range(200):
            place, whence = dice.choice([(dice.randint(0, length + 5), 0), (-dice.randint(0, length), 2), (0, 1)])
            assert file.seek(place, whence) == beside.seek(place, whence)
            many = dice.choice([0, 1, 10, 900, -1])
            assert file.read(many) == beside.read(many) and file.tell() == beside.tell()
            assert file.readline() == beside.readline()


def test_each_reader_reads_both_forms_and_a_tail_goes_on(tmp_path: Path) -> None:
    emitted = write(tmp_path, [20, 20, 20], segment_bytes=2_000, close=False)
    tail, late = JournalTail(tmp_path), JournalTail(tmp_path)
    late.poll(limit=30)
    before = tail.poll()
    positions = [batch.start for batch in Reading(tmp_path).batches()]
    all_done(tmp_path)
    assert len(list(tmp_path.glob(COMPRESSED))) == len(list_segments(tmp_path)) > 2
    assert reads_as(tmp_path, emitted) and all(map(same_event, before, emitted)) and tail.poll() == []
    assert len(late.poll()) == len(emitted) - 30 or late.position == tail.position
    assert [batch.start for batch in Reading(tmp_path).batches()] == positions
    for start in positions:
        assert next(iter(Reading(tmp_path).batches(start))).start == start
    whole = emitted[:50] + write(tmp_path, [5], after_seq=50, say="again")
    assert reads_as(tmp_path, whole)


def test_a_segment_that_is_compressed_while_it_is_read(tmp_path: Path) -> None:
    emitted = write(tmp_path, [20, 20, 20], segment_bytes=2_000)
    events: list[TelemetryEvent] = []
    for batch in Reading(tmp_path).batches():
        events += batch.events()
        all_done(tmp_path)
    assert len(events) == len(emitted) and all(map(same_event, events, emitted))


def test_a_listing_that_missed_a_change_of_form_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [20, 20, 20], segment_bytes=2_000)
    done(segment_path(tmp_path, 2))
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [name for name in listed(path) if "00002" not in name])
    assert list_segments(tmp_path)[2] == twin(segment_path(tmp_path, 2))
    twin(segment_path(tmp_path, 2)).unlink()
    assert 2 not in list_segments(tmp_path)


def test_a_writer_compresses_what_it_closed_and_what_an_earlier_one_left(tmp_path: Path) -> None:
    def hub(config: JournalConfig, supersede: Supersede | None, last: int) -> NissaHub:
        made = NissaHub(last_seq=last)
        made.add_sink(JournalWriter(tmp_path, RUN, config=config, supersede=supersede))
        return made

    plain = JournalConfig(batch_seconds=0.001, segment_bytes=3_000, compress_bytes=1 << 30)
    first = hub(plain, None, 0)
    for number in range(60):
        first.emit(note(str(number)))
        first.flush()
    last = first.last_seq
    first.close()
    assert len(list_segments(tmp_path)) > 2 and not list(tmp_path.glob(COMPRESSED))
    second = hub(
        JournalConfig(batch_seconds=0.001, segment_bytes=3_000, compress_bytes=1), Supersede("train", last), last
    )
    for number in range(60, 120):
        second.emit(note(str(number)))
        second.flush()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(COMPRESSED))) < len(list_segments(tmp_path)) - 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert segment_path(tmp_path, max(list_segments(tmp_path))).exists(), "the last is being written"
    second.close()
    said = [event.data["reason"] for event in read_journal(tmp_path) if "reason" in event.data]
    assert said == [str(number) for number in range(120)]


CALLS = ("open", "write", "utime", "fsync", "replace", "unlink", "close", "fstat", "stat")


def struck(directory: Path, at: int, strike: Callable[[], None]) -> int:
    """Compress the second segment; ``strike`` instead of call ``at``. How many calls there were."""
    count = 0
    kept = {name: getattr(os, name) for name in CALLS}

    def counted(name: str) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            nonlocal count
            count += 1
            if count == at:
                strike()
            return kept[name](*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name))
        done(segment_path(directory, 2))
    return count


def killed(directory: Path, at: int) -> None:
    child = fork()
    if child == 0:
        struck(directory, at, lambda: os.kill(os.getpid(), 9))
        os._exit(0)
    _, how = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(how) == -9


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_a_kill_or_an_error_at_any_call_leaves_a_whole_segment(tmp_path: Path) -> None:
    made = tmp_path / "made"
    emitted = write(made, [20, 20, 20], segment_bytes=2_000)
    names = {path.name: path.read_bytes() for path in made.iterdir()}

    def fresh(name: str) -> Path:
        there = tmp_path / name
        there.mkdir()
        for each, data in names.items():
            (there / each).write_bytes(data)
        return there

    calls = struck(fresh("all"), 0, fail)
    assert calls > 15
    forms = set()
    for at in range(1, calls + 1):
        directory = fresh(f"killed{at}")
        killed(directory, at)
        assert reads_as(directory, emitted)
        forms.add(tuple(sorted(path.name for path in directory.glob("events-00002*"))))
        assert reads_as(directory, emitted)
        write(directory, [1], after_seq=len(emitted))  # a resume goes on with whatever is there
        assert len(list(Reading(directory))) == len(emitted) + 2
        directory = fresh(f"failed{at}")
        with suppress(OSError):
            struck(directory, at, fail)
        assert reads_as(directory, emitted)
        assert not [path for path in directory.iterdir() if path.name.startswith(".")] or "unlink" in CALLS
    plain, packed = "events-00002.jsonl", "events-00002.jsonl.zst"
    assert forms == {(plain,), (plain, packed), (packed,)}, "killed before, between and after"


def test_damage_gives_an_exact_prefix_or_an_error_never_another_event(tmp_path: Path) -> None:
    emitted = write(tmp_path, [30, 30, 30], segment_bytes=3_000)
    all_done(tmp_path)
    files, dice, outcomes = sorted(tmp_path.glob(COMPRESSED)), random.Random(1), []
    for _ in range(120):
        path = dice.choice(files)
        kept = path.read_bytes()
        at, length = dice.randrange(len(kept)), dice.choice([1, 1, 4, 100])
        changed = dice.choice([bytes([kept[at] ^ 1 << dice.randrange(8)]) + kept[at + 1 :], kept[at + length :], b""])
        path.write_bytes(kept[:at] + changed)
        events: list[TelemetryEvent] = []
        try:
            events.extend(Reading(tmp_path))
            outcomes.append("whole")
            assert len(events) == len(emitted), "what is closed has no torn tail"
        except JournalDamaged as damage:
            outcomes.append("raised")
            assert damage.file == path
        assert all(map(same_event, events, emitted))
        salvage = Reading(tmp_path, salvage=True)
        saved = {event.seq: event for event in salvage}
        assert all(same_event(event, emitted[(event.seq or 0) - 1]) for event in saved.values())
        assert len(saved) == len(emitted) or salvage.report.damage
        path.write_bytes(kept)
    assert outcomes.count("raised") > 100


def test_salvage_of_one_frame_keeps_the_batches_beside_it(tmp_path: Path) -> None:
    emitted = write(tmp_path, [10] * 12)
    path = done(segment_path(tmp_path, 1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(JournalDamaged, match=r"frame \d+ cannot be decompressed"):
        list(Reading(tmp_path))
    reading = Reading(tmp_path, salvage=True)
    assert len(emitted) // 2 < len(list(reading)) < len(emitted) and reading.report.damage


def test_a_table_that_lies_is_one_sentence(tmp_path: Path) -> None:
    zstd = zstandard()
    frame, path = zstd.compress(bytes(1 << 22)), tmp_path / "events-00001.jsonl.zst"

    def table(size: int, packed: int = len(frame), count: int = 1) -> bytes:
        entry = struct.pack("<II", packed, size)
        return struct.pack("<II", 0x184D2A5E, 17) + entry + struct.pack("<IBI", count, 0, 0x8F92EAB1)

    for lie in (table(100), table(1 << 31), table(1 << 22, 5), table(1 << 22, count=1 << 31), b"", b"x" * 20):
        path.write_bytes(frame + lie)
        with pytest.raises(JournalDamaged):
            list(Reading(tmp_path))
        assert describe_run(tmp_path).problem is not None
        assert list(compare([tmp_path]).left_out) == [tmp_path.name]
    path.write_bytes(frame + table(1 << 22))
    assert size_of(path) == 1 << 22
    with pytest.raises(DataError):
        list(Reading(tmp_path))


@pytest.mark.parametrize("wrong", [zstandard().ZstdError, MemoryError])
def test_a_segment_that_cannot_be_compressed_stays_and_the_journal_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: type[Exception]
) -> None:
    def refuse(*arguments: object, **keywords: object) -> bytes:
        raise wrong("Allocation error: not enough memory")

    monkeypatch.setattr(zstandard(), "compress", refuse)
    journal = JournalWriter(tmp_path, RUN, config=JournalConfig(segment_bytes=500, compress_bytes=1))
    for number in range(20):
        journal(note(str(number)))
        journal.flush()
    journal.close()
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}
    reading = read_journal(tmp_path)
    assert len(list(reading)) == 20 and reading.report.closed
    with pytest.raises((DataError, MemoryError), match="Allocation error"):
        done(segment_path(tmp_path, 1))


def test_a_torn_tail_is_told_once_whatever_form_its_segment_has(tmp_path: Path) -> None:
    write(tmp_path, [3, 2], close=False)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-3])
    tail, late = JournalTail(tmp_path), JournalTail(tmp_path)
    tail.poll()
    write(tmp_path, [1], after_seq=4)
    late.poll()  # is past it when it changes its form
    done(path)
    tail.poll()
    late.poll()
    replay = read_journal(tmp_path)
    assert len(list(replay)) == 6
    assert tail.report.torn == late.report.torn == replay.report.torn and len(replay.report.torn) == 1


def test_a_compression_that_cannot_be_given_up_is_no_second_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = []

    def stubborn(path: Path) -> Iterator[None]:
        try:
            while True:
                yield
        except GeneratorExit:
            given_up.append(path)
            fail()

    monkeypatch.setattr("esper.nissa.journal.compress", stubborn)
    journal = JournalWriter(tmp_path, RUN, config=JournalConfig(segment_bytes=500, compress_bytes=1))
    for number in range(20):
        journal(note(str(number)))
        journal.flush()
    journal.close()
    assert given_up == [segment_path(tmp_path, 1)]
    reading = read_journal(tmp_path)
    assert len(list(reading)) == 20 and reading.report.closed
