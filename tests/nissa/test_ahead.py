from __future__ import annotations

import subprocess
from itertools import chain
from pathlib import Path

import pytest
from event_strategies import note, same_event
from journal_kit import write

from esper.leyline import TelemetryEvent
from esper.nissa import ahead
from esper.nissa.ahead import DecodedBatch, read_ahead
from esper.nissa.journal import JournalWriter
from esper.nissa.reader import read_journal
from esper.nissa.segments import segment_path


def events_of(batches: list[DecodedBatch]) -> list[TelemetryEvent]:
    return list(chain(*(piece for batch in batches for piece in batch.pieces())))


def test_it_reads_what_the_reader_reads(tmp_path: Path) -> None:
    write(tmp_path, [2, 5, 1, 40])
    slow = list(read_journal(tmp_path).batches())
    fast = list(read_ahead(tmp_path))
    assert [(batch.start, batch.end) for batch in fast] == [(batch.start, batch.end) for batch in slow]
    assert all(map(same_event, events_of(fast), read_journal(tmp_path)))
    assert len(events_of(fast)) == sum(batch.kept for batch in slow) > 0
    assert list(read_ahead(tmp_path, slow[1].start)) == fast[1:]


def test_what_a_resume_took_back_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, [3, 4], close=False)
    write(tmp_path, [5], after_seq=4)
    fast = events_of(list(read_ahead(tmp_path)))
    assert (
        [event.seq for event in fast] == [event.seq for event in read_journal(tmp_path)] == [*range(1, len(fast) + 1)]
    )


def test_values_that_json_has_not_survive(tmp_path: Path) -> None:
    event = note("NaN", seq=1, producer="p")
    event.data["detail"] = "é"
    with JournalWriter(tmp_path, "r") as writer:
        writer(event)
    (read,) = events_of(list(read_ahead(tmp_path)))
    assert same_event(read, event)


def test_it_stops_before_damage_without_a_word(tmp_path: Path) -> None:
    write(tmp_path, [3, 2, 4])
    whole = list(read_ahead(tmp_path))
    path = segment_path(tmp_path, 1)
    data = bytearray(path.read_bytes())
    data[whole[1].start.offset + 5] ^= 1
    path.write_bytes(data)
    assert list(read_ahead(tmp_path)) == whole[:1]


def test_a_process_that_cannot_start_or_stops_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [3, 2])
    monkeypatch.setattr(ahead.sys, "executable", str(tmp_path / "nothing"))
    assert list(read_ahead(tmp_path)) == []
    monkeypatch.setattr(ahead.sys, "executable", "/bin/false")
    assert list(read_ahead(tmp_path)) == []


def test_leaving_early_ends_the_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def recorded(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(ahead.subprocess, "Popen", recorded)
    write(tmp_path, [3, 2])
    batches = read_ahead(tmp_path)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert started[0].returncode is not None
