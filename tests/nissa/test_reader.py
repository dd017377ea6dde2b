from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from event_strategies import same_event
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_kit import RUN, leave, write

from esper.leyline import DataError, EsperError, TelemetryEvent
from esper.nissa.journal import JournalWriter
from esper.nissa.reader import Gap, JournalChanged, JournalDamaged, JournalTail, Reading, Rewind, read_journal
from esper.nissa.segments import segment_path


def told(events: list[TelemetryEvent]) -> list[str]:
    return [event.data["reason"] for event in events if "reason" in event.data]


def test_a_whole_journal_reads_back_as_it_was_emitted(tmp_path: Path) -> None:
    emitted = write(tmp_path, [3, 1, 500], segment_bytes=20_000)
    for validate in (False, True):
        reading = read_journal(tmp_path, validate=validate)
        events = list(reading)
        assert len(events) == 505 and all(map(same_event, events, emitted))
        report = reading.report
        assert (report.events, report.closed, report.run_id) == (505, True, RUN)
        assert not (report.torn or report.gaps or report.damage or report.superseded_events)
    assert len(list(tmp_path.glob("events-*.jsonl"))) > 1


def test_no_journal_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run directory"):
        read_journal(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no journal in it"):
        read_journal(tmp_path)
    segment_path(tmp_path, 1).write_bytes(b"")
    reading = read_journal(tmp_path)
    assert list(reading) == [] and not reading.report.closed and reading.report.torn == []


def test_a_torn_tail_is_skipped_and_reported(tmp_path: Path) -> None:
    emitted = write(tmp_path, [3, 4], close=False)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    reading = read_journal(tmp_path)
    assert told(list(reading)) == told(emitted[:4])
    (torn,) = reading.report.torn
    assert (torn.file, torn.events) == (path, 4) and torn.offset + torn.bytes == len(whole) - 20
    assert not reading.report.closed


def test_a_resume_supersedes_the_tail_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, [3, 4, 5], close=False)  # seq 1 to 13
    write(tmp_path, [2], after_seq=8, say="again")  # 9 is the level, 10 and 11 the notes
    reading = read_journal(tmp_path)
    events = list(reading)
    assert [event.seq for event in events] == list(range(1, 12))
    assert told(events)[-2:] == ["again10", "again11"]
    assert reading.report.superseded_events == 5 and reading.report.rewinds == [Rewind(2, "train", 8)]
    assert told(list(reading.superseded())) == ["x9", "x10", "x11", "x12", "x13"]


def test_resumes_upon_resumes_fold_to_one_history(tmp_path: Path) -> None:
    write(tmp_path, [9], close=False)  # 1-10
    write(tmp_path, [4], after_seq=8, close=False, say="b")  # 9-13
    write(tmp_path, [1], after_seq=5, close=False, say="c")  # 6-7
    write(tmp_path, [1], after_seq=7, say="d")  # 8-9
    events = list(read_journal(tmp_path))
    assert [event.seq for event in events] == list(range(1, 10))
    assert told(events) == ["x2", "x3", "x4", "x5", "c7", "d9"]
    write(tmp_path, [1], after_seq=0, say="e")
    assert told(list(read_journal(tmp_path))) == ["e2"]


def test_a_resume_behind_what_was_saved_shows_the_gap(tmp_path: Path) -> None:
    write(tmp_path, [3], close=False)  # 1-4
    write(tmp_path, [1], after_seq=6)
    reading = read_journal(tmp_path)
    assert [event.seq for event in reading] == [1, 2, 3, 4, 7, 8]
    assert reading.report.gaps == [Gap("train", 5, 6)]


def test_a_torn_tail_before_a_resume_stays_and_is_not_an_error(tmp_path: Path) -> None:
    write(tmp_path, [3, 2], close=False)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-3])
    segment_path(tmp_path, 2).write_bytes(b'{"journal":1,')
    write(tmp_path, [1], after_seq=4)
    reading = read_journal(tmp_path)
    assert [event.seq for event in reading] == [1, 2, 3, 4, 5, 6]
    assert [torn.file.name for torn in reading.report.torn] == ["events-00001.jsonl", "events-00002.jsonl"]


def test_lost_commits_and_missing_or_foreign_segments_are_damage(tmp_path: Path) -> None:
    write(tmp_path, [50, 50, 50], segment_bytes=5_000)
    first, second = segment_path(tmp_path, 1), segment_path(tmp_path, 2)
    kept = first.read_bytes(), second.read_bytes()
    cut = kept[0].rindex(b'{"commit":')
    first.write_bytes(kept[0][:cut])  # on the border of a batch: every crc fits
    with pytest.raises(JournalDamaged, match="segment 2 does not continue from here") as caught:
        list(read_journal(tmp_path))
    assert (caught.value.file, caught.value.offset) == (first, cut)
    first.unlink()
    with pytest.raises(JournalDamaged, match="missing"):
        list(read_journal(tmp_path))
    first.write_bytes(kept[0])
    write(tmp_path / "other", [50, 50, 50], segment_bytes=5_000, run_id="another")
    second.write_bytes(segment_path(tmp_path / "other", 2).read_bytes())
    with pytest.raises(JournalDamaged, match="belongs to run"):
        list(read_journal(tmp_path))
    second.write_bytes(kept[0])
    with pytest.raises(JournalDamaged, match="it says that it is segment 1"):
        list(read_journal(tmp_path))


def test_salvage_skips_the_damaged_batch_only_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, [3, 4, 5])
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes().replace(b'"x6"', b'"xx"'))
    with pytest.raises(JournalDamaged):
        list(read_journal(tmp_path))
    reading = read_journal(tmp_path, salvage=True)
    assert [event.seq for event in reading] == [1, 2, 3, 4, 9, 10, 11, 12, 13]
    assert len(reading.report.damage) == 1 and reading.report.gaps == [Gap("train", 5, 8)]


@pytest.mark.parametrize("number", [1, 2])
def test_salvage_of_a_segment_without_its_header_loses_its_first_batch(tmp_path: Path, number: int) -> None:
    emitted = write(tmp_path, [9] * 12, segment_bytes=5_000)
    path = segment_path(tmp_path, number)
    path.write_bytes(path.read_bytes().replace(b'"journal":1', b'"journal":2' if number == 1 else b'"journal":"', 1))
    with pytest.raises(DataError):
        list(read_journal(tmp_path))
    path.write_bytes(path.read_bytes().replace(b'"journal":2', b'"journal":0', 1))
    reading = read_journal(tmp_path, salvage=True)
    lost = 10 if number == 1 else 9
    assert len(list(reading)) == len(emitted) - lost and reading.report.damage


def test_an_indexer_can_start_anywhere(tmp_path: Path) -> None:
    write(tmp_path, [30, 30, 30], segment_bytes=6_000, close=False)
    write(tmp_path, [2], after_seq=40)
    reading = read_journal(tmp_path)
    everything = [event.seq for event in reading]
    batches = list(reading.batches())
    assert reading.report.events == len(everything)
    for index, batch in enumerate(batches):
        rest = list(read_journal(tmp_path).batches(batch.start))
        assert [b.start for b in rest] == [b.start for b in batches[index:]]
    assert [event.seq for batch in batches for event in batch.events()] == everything


# a tail


def test_a_tail_gives_everything_once_however_it_is_polled(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path / "later")
    assert tail.poll() == []
    (tmp_path / "later").mkdir()
    assert tail.poll() == [] and tail.position is None
    emitted = write(tmp_path / "source", [5, 40, 3], segment_bytes=4_000)
    events: list[TelemetryEvent] = []
    for source in sorted((tmp_path / "source").iterdir()):
        copy = tmp_path / "later" / source.name
        data = source.read_bytes()
        for at in range(0, len(data), 777):
            with copy.open("ab") as file:
                file.write(data[at : at + 777])
            events += tail.poll()
            assert tail.rewinds == []
    assert len(events) == len(emitted) and all(map(same_event, events, emitted))
    assert tail.report.closed and tail.poll() == [] and tail.report.closed
    again = JournalTail(tmp_path / "later", tail.position)
    assert again.poll() == []


def test_a_tail_says_what_a_resume_takes_back(tmp_path: Path) -> None:
    write(tmp_path, [9], close=False)
    tail = JournalTail(tmp_path)
    assert len(tail.poll()) == 10
    write(tmp_path, [2], after_seq=6, close=False)
    assert [event.seq for event in tail.poll()] == [7, 8, 9]
    assert tail.rewinds == [Rewind(2, "train", 6)]
    assert tail.poll() == [] and tail.rewinds == []
    write(tmp_path, [2], after_seq=9)
    assert [event.seq for event in tail.poll()] == [10, 11, 12] and tail.rewinds == []
    fresh = JournalTail(tmp_path)
    assert [event.seq for event in fresh.poll()] == list(range(1, 13)) and fresh.rewinds == []


def test_a_tail_notices_a_truncated_deleted_or_replaced_file(tmp_path: Path) -> None:
    write(tmp_path, [9, 9], close=False)
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    tail = JournalTail(tmp_path)
    tail.poll()
    os.replace(_copy(path, whole), path)
    assert tail.poll() == [], "a copying tool's new file with the same bytes is the same journal"
    path.write_bytes(whole[:-10])
    with pytest.raises(JournalChanged, match="truncated"):
        tail.poll()
    path.write_bytes(b"{" * len(whole))
    with pytest.raises(JournalChanged, match="replaced"):
        tail.poll()
    path.unlink()
    with pytest.raises(JournalChanged, match="deleted"):
        tail.poll()
    path.write_bytes(whole)
    assert tail.poll() == []


def _copy(path: Path, data: bytes) -> Path:
    copy = path.with_suffix(".part")
    copy.write_bytes(data)
    return copy


def test_a_tail_that_has_read_only_the_header_notices_another_run(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path, RUN)
    tail = JournalTail(tmp_path)
    assert tail.poll() == []
    leave(journal)
    path = segment_path(tmp_path, 1)
    assert tail.poll() == []
    path.write_bytes(path.read_bytes().replace(b'"segment":1', b'"segment":2'))
    with pytest.raises(EsperError):
        tail.poll()


# random corruption


def corrupt(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, delete or repeat some bytes."""
    at = rng.randrange(len(data))
    length = rng.choice([1, 1, 2, 10, 300])
    match rng.randrange(6):
        case 0:
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + rng.randbytes(length) + data[at:]
        case 4:
            return data[:at] + bytes(length) + data[at + length :]
        case _:
            return data[:at] + data[at : at + length] + data[at:]


def check_corruption(directory: Path, rounds: int, seed: int) -> dict[str, int]:
    """Cutting the last segment down into its header undoes the resume that it began: then it is the history before."""
    before = write(directory, [3, 40, 2], segment_bytes=3_000, close=False)
    after = before[:20] + write(directory, [5, 8], after_seq=20, say="again")
    assert all(map(same_event, Reading(directory), after))
    files = sorted(directory.glob("events-*.jsonl"))
    rng = random.Random(seed)
    counts = {"raised": 0, "prefix": 0, "whole": 0, "before the resume": 0}
    for _ in range(rounds):
        path = rng.choice(files)
        kept = path.read_bytes()
        path.write_bytes(corrupt(rng, kept))
        events: list[TelemetryEvent] = []
        reading = Reading(directory)
        try:
            for event in reading:
                events.append(event)
            outcome = "whole" if len(events) == len(after) else "prefix"
            assert path == files[-1] or outcome == "whole", "loss in the middle must raise"
        except DataError:
            outcome = "raised"
        finally:
            path.write_bytes(kept)
        if outcome != "raised" and not reading.report.rewinds:
            outcome = "before the resume"
            assert len(events) == len(before) and all(map(same_event, events, before)) and path == files[-1]
        else:
            assert len(events) <= len(after) and all(map(same_event, events, after))
        counts[outcome] += 1
    return counts


def test_corruption_gives_an_exact_prefix_or_an_error_never_another_event(tmp_path: Path) -> None:
    counts = check_corruption(tmp_path, 300, seed=1)
    assert counts["raised"] > 100 and counts["prefix"] > 10


@pytest.mark.slow
def test_corruption_twenty_thousand_times(tmp_path: Path) -> None:
    print(check_corruption(tmp_path, 20_000, seed=2))


@settings(max_examples=20)
@given(plan=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.booleans()), min_size=1, max_size=5))
def test_any_chain_of_resumes_folds_like_a_list(plan: list[tuple[int, int, bool]]) -> None:
    """The obvious model: a history is a list, and a resume after seq n keeps its first n entries."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        history: list[TelemetryEvent] = []
        for index, (size, back, close) in enumerate(plan):
            after = None if index == 0 else min(back, len(history))
            emitted = write(directory, [size], after_seq=after, close=close, say=f"{index}-", segment_bytes=600)
            history = history[: after or 0] + emitted
        events = list(Reading(directory, validate=True))
        assert len(events) == len(history) and all(map(same_event, events, history))
        tail = JournalTail(directory)
        assert all(map(same_event, tail.poll(), history))
