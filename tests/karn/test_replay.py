from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.karn import replay
from esper.karn import state as states
from esper.karn.aggregator import fold
from esper.karn.replay import Timeline
from esper.karn.snapshot import Builder, build, encode
from esper.karn.source import Follower
from esper.leyline import DataError, TelemetryEvent
from esper.nissa.journal import JournalConfig, JournalWriter
from karn.journals import RUN_ID, write_run
from karn.streams import random_run, runs, story


@pytest.fixture(autouse=True)
def few_events_per_keyframe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "KEYFRAME_EVENTS", 32)
    monkeypatch.setattr(replay, "BYTES_PER_EVENT", 1 << 20)


@given(events=runs(), cuts=st.lists(st.integers(0, 400), min_size=1, max_size=6))
@settings(max_examples=12)
def test_live_and_replay_give_the_same_bytes(
    events: list[TelemetryEvent], cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("run")
    path = write_run(base, events)
    timeline = Timeline(path, cache=base / "cache")
    live = Builder()
    for cut in cuts:
        now = 1_760_000_100.0 + cut
        told = fold(events[:cut])
        assert encode(build(timeline.at(cut), now)) == encode(live.build(told, now))
        assert states.encode(timeline.at(cut)) == states.encode(told)


def test_seeking_by_time(tmp_path: Path) -> None:
    events = random_run(11)
    timeline = Timeline(write_run(tmp_path, events), cache=tmp_path / "cache")
    dice = random.Random(0)
    for _ in range(20):
        moment = dice.uniform((events[0].timestamp or 0) - 1, (events[-1].timestamp or 0) + 1)
        known = [event for event in events if (event.timestamp or 0) <= moment]
        assert states.encode(timeline.at_time(moment)) == states.encode(fold(known))


def test_the_cache_is_used_and_lies_outside_the_run(tmp_path: Path) -> None:
    events = random_run(3)
    path = write_run(tmp_path, events)
    before = sorted(path.iterdir())
    Timeline(path, cache=tmp_path / "cache")
    assert sorted(path.iterdir()) == before
    assert len(list((tmp_path / "cache").glob("*/*.keyframe"))) >= 3
    read: list[int] = []
    again = Timeline(path, cache=tmp_path / "cache", progress=lambda done, total: read.append(done))
    assert len(read) < 6
    assert states.encode(again.at(again.events)) == states.encode(fold(events))


def test_keyframes_of_other_code_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, random_run(3))

    def read() -> int:
        told: list[int] = []
        Timeline(path, cache=tmp_path / "cache", progress=lambda done, total: told.append(done))
        return len(told)

    whole = read()
    assert read() < whole
    monkeypatch.setattr(replay, "folding_code", lambda: b"other code")
    assert read() == whole


def test_read_ahead_by_another_process_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = random_run(3)
    path = write_run(tmp_path, events)
    here = Timeline(path, cache=tmp_path / "here")
    monkeypatch.setattr(replay, "AHEAD", 0)
    monkeypatch.setattr(replay, "spare_core", lambda: True)
    told: list[tuple[int, int]] = []
    ahead = Timeline(path, cache=tmp_path / "ahead", progress=lambda done, total: told.append((done, total)))
    assert ahead.end == here.end and ahead.marks == here.marks
    stored = [sorted(file.name for file in (tmp_path / name).glob("*/*")) for name in ("here", "ahead")]
    assert stored[0] == stored[1] and len(stored[0]) > 3
    size = (path / "events-00001.jsonl").stat().st_size
    assert told == sorted(told) and told[-1] == (size, size)


@pytest.mark.parametrize(("load", "spare"), [(0.9, True), (1.0, True), (1.1, False), (9.0, False)])
def test_a_core_is_spare_where_the_load_leaves_one(load: float, spare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert replay.spare_core() is spare


def test_two_at_once_read_the_journal_once(tmp_path: Path) -> None:
    events = random_run(3)
    path = write_run(tmp_path, events)
    begun, go = threading.Event(), threading.Event()
    first: list[int] = []
    second: list[int] = []

    def slowly(done: int, total: int) -> None:
        begun.set()
        go.wait(30)
        first.append(done)

    def follow(done: int, total: int) -> None:
        second.append(done)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(Timeline, path, cache=tmp_path / "cache", progress=slowly)
        assert begun.wait(30)
        other = pool.submit(Timeline, path, cache=tmp_path / "cache", progress=follow)
        time.sleep(0.2)
        assert not second
        go.set()
        assert one.result(30).end == other.result(30).end
    assert len(second) < 6 < len(first)


def test_a_reader_that_stands_still_does_not_hold_up_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PATIENCE", 0.1)
    path = write_run(tmp_path, story())
    again: list[Timeline] = []

    def meanwhile(done: int, total: int) -> None:
        if not again:
            again.append(Timeline(path, cache=tmp_path / "cache"))

    assert Timeline(path, cache=tmp_path / "cache", progress=meanwhile).end == again[0].end


def test_progress_counts_over_all_segments(tmp_path: Path) -> None:
    with JournalWriter(tmp_path, RUN_ID, config=JournalConfig(batch_events=32, segment_bytes=4096)) as writer:
        for event in random_run(3):
            writer(event)
            if len(list(tmp_path.iterdir())) < 4:
                writer.flush()
    told: list[tuple[int, int]] = []
    Timeline(tmp_path, cache=tmp_path / "cache", progress=lambda done, total: told.append((done, total)))
    size = sum(path.stat().st_size for path in tmp_path.glob("events-*.jsonl"))
    assert len(list(tmp_path.glob("events-*.jsonl"))) > 2
    assert told == sorted(told) and told[-1] == (size, size)


def test_progress_of_a_journal_that_grows_while_it_is_read_is_never_more_than_the_whole(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with JournalWriter(tmp_path, RUN_ID) as writer:
        for event in random_run(3):
            writer(event)
        writer.flush()

        def grow(done: int, total: int) -> None:
            told.append((done, total))
            if len(told) == 1:
                for event in random_run(4):
                    writer(event)
                writer.flush()

        Timeline(tmp_path, cache=tmp_path / "cache", progress=grow)
    assert len(told) > 1 and all(0 < done <= total for done, total in told)
    assert told[-1][1] > told[0][1]


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    events = random_run(3)
    path = write_run(tmp_path, events)
    Timeline(path, cache=tmp_path / "cache")
    for stored in (tmp_path / "cache").glob("*/*.keyframe"):
        stored.write_bytes(stored.read_bytes()[:-3] + b"abc")
    again = Timeline(path, cache=tmp_path / "cache")
    for cut in (10, 100, len(events)):
        assert states.encode(again.at(cut)) == states.encode(fold(events[:cut]))
    for stored in (tmp_path / "cache").glob("*/index.msgpack"):
        stored.write_bytes(b"nonsense")
    assert Timeline(path, cache=tmp_path / "cache").events == len(events)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    timeline = Timeline(write_run(tmp_path, story()), cache=tmp_path / "file")
    assert timeline.events == len(story())
    timeline.close()


def test_a_follower_goes_on_from_the_end(tmp_path: Path) -> None:
    events = random_run(3)
    path = write_run(tmp_path, events)
    state, position = Timeline(path, cache=tmp_path / "cache").end
    follower = Follower(path, states.decode(state), position)
    assert follower.poll() == 0
    assert states.encode(follower.state) == states.encode(fold(events))


def test_marks_for_the_scrubber(tmp_path: Path) -> None:
    timeline = Timeline(write_run(tmp_path, story()), cache=tmp_path / "cache")
    assert [mark.type for mark in timeline.marks] == [
        "TRAINING_STARTED",
        "SEED_GERMINATED",
        "GOVERNOR_PANIC",
        "GOVERNOR_ROLLBACK",
        "SEED_FOSSILIZED",
        "TRAINING_ENDED",
    ]
    mark = timeline.marks[4]
    assert timeline.at(mark.events).census["conv3"].fossilized == 1
    assert timeline.at(mark.events - 1).census["conv3"].fossilized == 0


def test_many_marks_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MARKS", 8)
    timeline = Timeline(write_run(tmp_path, random_run(3, epochs=60)), cache=tmp_path / "cache")
    assert len(timeline.marks) <= 8 < timeline.marks_seen


@pytest.mark.parametrize("spare", [False, True])
def test_damage_in_the_middle_leaves_what_is_before_whichever_process_meets_it(
    spare: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "AHEAD", 0)
    monkeypatch.setattr(replay, "spare_core", lambda: spare)
    events = random_run(3)
    path = write_run(tmp_path, events)
    journal = path / "events-00001.jsonl"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    timeline = Timeline(path, cache=tmp_path / "cache")
    assert 0 < timeline.events < len(events)
    assert [damage.kind for damage in timeline.damage] == ["damaged"]


def test_no_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no journal"):
        Timeline(tmp_path)
