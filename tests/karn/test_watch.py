from __future__ import annotations

from pathlib import Path

from esper.karn import state as states
from esper.karn.aggregator import fold
from esper.karn.watch import Watch
from esper.nissa.journal import JournalWriter
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
    clock = Clock(START + 60)
    watch = Watch(write_run(tmp_path, events), clock=clock, cache=tmp_path / "cache")
    assert watch.tick().run.state == "ended"
    watch.seek(20)
    assert watch.replaying and states.encode(watch.state) == states.encode(fold(events[:20]))
    watch.step(-5)
    assert watch.tick().clock.events == 15
    watch.live()
    assert watch.tick().clock.events == len(events)


def test_playing_moves_with_the_clock_and_stops_at_the_end(tmp_path: Path) -> None:
    events = story()
    clock = Clock(START + 60)
    watch = Watch(write_run(tmp_path, events), clock=clock, cache=tmp_path / "cache")
    watch.play(speed=2.0)
    seen = []
    for _ in range(10):
        clock.now += 1.0
        seen.append(watch.tick())
    assert [shot.clock.now - seen[0].clock.now for shot in seen[:3]] == [0.0, 2.0, 4.0]
    assert all(a.clock.events <= b.clock.events for a, b in zip(seen, seen[1:], strict=False))
    assert seen[-1].clock.events == len(events) and not watch.playing


def test_replay_of_a_growing_run_reads_on(tmp_path: Path) -> None:
    events = story()
    with JournalWriter(tmp_path, RUN_ID) as writer:
        for event in events[:30]:
            writer(event)
        writer.flush()
        watch = Watch(tmp_path, clock=Clock(START), cache=tmp_path / "cache")
        watch.tick()
        watch.seek(10)
        for event in events[30:]:
            writer(event)
        writer.flush()
        watch.tick()
        watch.seek(50)
        assert watch.state.events == 50


def test_opening_at_the_end_shows_the_same(tmp_path: Path) -> None:
    path = write_run(tmp_path, story())
    first = Watch(path, clock=Clock(START + 60), cache=tmp_path / "cache")
    second = Watch(path, clock=Clock(START + 60), cache=tmp_path / "cache", open_at_end=True)
    assert first.tick() == second.tick()


def test_vitals_are_for_a_live_run_only(tmp_path: Path) -> None:
    path = write_run(tmp_path, story()[:-1])
    clock = Clock(START + 60)
    watch = Watch(path, clock=clock, cache=tmp_path / "cache")
    assert watch.tick().host is not None
    watch.seek(5)
    assert "host" not in watch.tick().__struct_fields__ or not watch.tick().host
