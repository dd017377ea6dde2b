from __future__ import annotations

import os
from pathlib import Path

import pytest

from esper.karn import state as states
from esper.karn import watch as watch_module
from esper.karn.aggregator import fold
from esper.karn.player import Player
from esper.karn.watch import RunWatch
from esper.leyline import DataError
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn import demo
from karn.journals import RUN_ID, write_run
from karn.streams import START, story


class Clock:
    """A clock that a test turns."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_live_then_replay_then_live(tmp_path: Path) -> None:
    events = story()
    watch = RunWatch(write_run(tmp_path, events), clock=Clock(START + 60), cache=tmp_path / "cache")
    assert watch.tick().run.state == "ended"
    watch.replay().seek(20)
    assert states.encode(watch.state) == states.encode(fold(events[:20]))
    watch.replay().step(-5)
    assert watch.tick().clock.events == 15
    watch.live()
    assert watch.tick().clock.events == len(events)


def test_playing_moves_with_the_clock_and_stops_at_the_end(tmp_path: Path) -> None:
    events = story()
    clock = Clock(START + 60)
    player = Player(write_run(tmp_path, events), clock, tmp_path / "cache")
    player.play(speed=2.0)
    start = player.now
    seen = []
    for _ in range(10):
        clock.now += 1.0
        seen.append(player.tick())
    assert [shot.clock.now - start for shot in seen[:3]] == [2.0, 4.0, 6.0]
    assert all(a.clock.events <= b.clock.events for a, b in zip(seen, seen[1:], strict=False))
    assert seen[-1].clock.events == len(events) and not player.playing
    player.play()
    assert player.state.events <= 1


def test_replay_of_a_growing_run_reads_on(tmp_path: Path) -> None:
    events = story()
    with JournalWriter(tmp_path, RUN_ID) as writer:
        for event in events[:30]:
            writer(event)
        writer.flush()
        watch = RunWatch(tmp_path, clock=Clock(START), cache=tmp_path / "cache")
        watch.tick()
        watch.replay().seek(10)
        for event in events[30:]:
            writer(event)
        writer.flush()
        watch.tick()
        watch.replay().seek(50)
        assert watch.state.events == 50


def test_a_long_journal_is_opened_through_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, story())
    first = RunWatch(path, clock=Clock(START + 60), cache=tmp_path / "cache").tick()
    monkeypatch.setattr(watch_module, "LONG", 1)
    assert RunWatch(path, clock=Clock(START + 60), cache=tmp_path / "cache").tick() == first
    assert list((tmp_path / "cache").iterdir())


def test_vitals_are_the_journals_live_and_in_replay(tmp_path: Path) -> None:
    events = [event for part in demo.epochs(count=12, start=START) for event in part]
    samples = [place for place, event in enumerate(events) if event.data.get("kind") == "host_vitals"]
    path = write_run(tmp_path, events[: samples[-1] + 3])
    watch = RunWatch(path, clock=Clock(START + 60), cache=tmp_path / "cache")
    live = watch.tick()
    assert live.host is not None and live.host.time == events[samples[-1]].timestamp
    assert live.bound.kind == "compute"
    watch.replay().seek(samples[-1] + 3)
    again = watch.tick()
    assert (again.host, again.bound) == (live.host, live.bound)
    watch.replay().seek(samples[0])
    assert watch.tick().host is None and watch.tick().bound.kind == "unknown"


def test_there_is_nothing_to_replay_without_a_journal(tmp_path: Path) -> None:
    watch = RunWatch(tmp_path, clock=Clock(START), cache=tmp_path / "cache")
    with pytest.raises(DataError, match="no journal"):
        watch.replay()
    assert watch.tick().run.state == "waiting"


def test_a_run_is_described_only_once_its_process_seems_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, describe = [], watch_module.describe_run
    monkeypatch.setattr(watch_module, "describe_run", lambda path: asked.append(path) or describe(path))
    monkeypatch.setattr(watch_module, "LOOKS_EVERY", 0.0)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for pid, gone in ((os.getpid(), False), (child, True)):
        path = RunDirectory.create(tmp_path, f"of-{pid}", {"pid": pid}).path
        with JournalWriter(path, path.name) as writer:
            for event in story()[:30]:
                writer(event)
        watch = RunWatch(path, clock=Clock(START + 60))
        watch.tick()
        assert (watch.gone, asked) == (gone, [path] if gone else [])
    (path / "run.json").write_text("{")
    watch.tick()
    assert not watch.gone, "whose process it is cannot be told"
