"""How fast Overwatch is: indexing, opening and seeking a long journal, snapshots and frames of a wide run.

    uv run python benchmarks/overwatch.py --events 2000000

Times are CPU time of this process unless they say wall. The first opening reads in a second process where a core is
idle (load of the last minute), and that one's CPU time stands beside. The journal is written once, in a temporary
directory or in ``--keep DIR``, from a made-up run of 16 environments with 3 slots each, over as many episodes as the
count asks for.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from esper.karn.aggregator import fold
from esper.karn.diff import diff
from esper.karn.replay import Timeline
from esper.karn.snapshot import Builder, encode
from esper.karn.source import Follower
from esper.karn.state import RunState
from esper.karn.web.columns import Columns
from esper.karn.web.feed import LISTED
from esper.karn.web.frames import Mode, Sight, View, encode_frame
from esper.leyline import TelemetryEvent
from esper.nissa.journal import JournalWriter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from karn.streams import Recorder, begin, begin_episode, epoch_done, random_run

Made = TypeVar("Made")


def endless() -> Iterator[TelemetryEvent]:
    """Episodes of random growth, one after the other, with one clock and one sequence."""
    now, sequence = 1_760_000_000.0, 0
    for episode in itertools.count():
        events = random_run(episode % 7, envs=16, epochs=50)
        for event in events[0 if episode == 0 else 1 : -1]:
            sequence += 1
            now += 0.01
            event.timestamp, event.seq, event.episode = now, sequence, episode
            if episode % 10:  # non-finite values are there, but rare, as in a real run
                event.data = {name: _finite(value) for name, value in event.data.items()}
            yield event


def _finite(value: Any) -> Any:
    return 1.0 if isinstance(value, float) and not math.isfinite(value) else value


def write(directory: Path, events: int) -> float:
    """Write the journal unless it is there; returns its size in MB."""
    path = directory / "run"
    if not path.is_dir():
        path.mkdir(parents=True)
        with JournalWriter(path, "20260101-000000-bench") as writer:
            for event in itertools.islice(endless(), events):
                writer(event)
    return sum(file.stat().st_size for file in path.iterdir()) / 1e6


def timed(title: str, work: Callable[[], Made]) -> Made:
    """Do ``work`` and print what it took: wall clock, CPU of this process, and CPU of those that it waited for."""
    wall, own, others = time.perf_counter(), time.process_time(), _children()
    result = work()
    wall, own, others = time.perf_counter() - wall, time.process_time() - own, _children() - others
    print(f"{title:<58} {wall:9.3f} s wall, CPU {own:.3f} s" + (f" + {others:.3f} s" if others else ""))
    return result


def _children() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def long_run(directory: Path) -> None:
    """First opening, later opening, seeks."""
    run, cache = directory / "run", directory / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    timed("first opening (index and keyframes)", lambda: Timeline(run, cache=cache))
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 1e6
    print(f"{'cache':<58} {size:9.1f} MB")
    again = timed("opening again", lambda: Timeline(run, cache=cache))
    dice, took = random.Random(0), []
    for _ in range(100):
        place = dice.randrange(again.events)
        wall, own = time.perf_counter(), time.process_time()
        again.at(place)
        took.append((time.perf_counter() - wall, time.process_time() - own))
    for column, clock in enumerate(("wall", "CPU")):
        ordered = sorted(each[column] for each in took)
        print(
            f"{f'seek anywhere, {clock}, median / p95 / worst of 100':<58} "
            f"{ordered[50]:.3f} / {ordered[95]:.3f} / {ordered[-1]:.3f} s"
        )
    found = timed("history: 200 newest failed gates", lambda: len(list(again.history(_failed, again.events, 200))))
    assert found == 200
    for title, who in (("this process", resource.RUSAGE_SELF), ("the largest other one", resource.RUSAGE_CHILDREN)):
        print(f"{f'peak memory of {title}':<58} {resource.getrusage(who).ru_maxrss / 1024:9.0f} MB")
    print(f"{'load of the machine, 1 / 5 / 15 minutes':<58} " + " / ".join(f"{load:.1f}" for load in os.getloadavg()))


def _failed(event: TelemetryEvent) -> bool:
    return event.data.get("passed") is False


def wide_run(envs: int, slots: int, directory: Path) -> None:
    """Snapshots, patches and frames of many environments, of which all, a tenth or none changed."""
    rec, names = Recorder(), tuple(f"slot{i}" for i in range(slots))
    begin(rec, envs=envs, slots=names)
    for env in range(envs):
        begin_episode(rec, env)
    state = RunState()
    for epoch in range(1, 4):
        for env in range(envs):
            alphas = {name: 0.1 * epoch for name in names}
            epoch_done(rec, env, epoch, 50.0 + epoch, stages=dict.fromkeys(names, "BLENDING"), alphas=alphas)
    fold(rec.events, state)
    builder, columns = Builder(), Columns()

    def seen() -> Sight:
        view = View(builder.build(state, rec.now, worst=LISTED), Mode("live"))
        return Sight(view, columns.board(state, rec.now))

    for changed in (envs, envs // 10, 0):
        rec.events.clear()
        for env in range(changed):
            alphas = {name: 0.5 for name in names}
            epoch_done(rec, env, 5, 55.0, stages=dict.fromkeys(names, "BLENDING"), alphas=alphas)
        before = seen()
        fold(rec.events, state)
        began = time.process_time()
        frame = encode_frame(2, 0, before, seen())
        took = (time.process_time() - began) * 1000
        label = f"web frame, {changed} of {envs} environments changed"
        print(f"{label:<58} {took:9.1f} ms CPU, {len(frame) / 1e3:.0f} kB")
        began = time.process_time()
        builder.build(state, rec.now)
        print(f"{'  whole snapshot':<58} {(time.process_time() - began) * 1000:9.1f} ms CPU")
    whole = builder.build(state, rec.now)
    print(f"{'whole snapshot as JSON':<58} {len(encode(whole)) / 1e6:9.1f} MB")
    assert diff(whole, whole) is None


def terminal(envs: int, directory: Path) -> None:
    """CPU of a frame of the terminal face, driven headless."""
    import asyncio

    from esper.karn.tui import Overwatch
    from esper.karn.watch import RunWatch

    run = directory / "wide"
    rec, names = Recorder(), tuple(f"slot{i}" for i in range(10))
    begin(rec, envs=envs, slots=names)
    for env in range(envs):
        begin_episode(rec, env)
        epoch_done(rec, env, 1, 50.0, stages=dict.fromkeys(names, "TRAINING"))
    run.mkdir(exist_ok=True)
    with JournalWriter(run, "20260101-000000-wide") as writer:
        for event in rec.events:
            writer(event)

        async def drive() -> float:
            app = Overwatch(RunWatch(run, clock=lambda: rec.now, cache=directory / "cache"), rate=0.01)
            async with app.run_test(size=(160, 50)) as pilot:
                frames, took = 30, 0.0
                for epoch in range(2, frames + 2):
                    rec.events.clear()
                    began = rec.now
                    for env in range(0, envs, 10):
                        rec.now = began  # all within the half second of one frame: an epoch adds as much
                        epoch_done(rec, env, epoch, 50.0 + epoch, stages=dict.fromkeys(names, "TRAINING"))
                    for event in rec.events:
                        writer(event)
                    writer.flush()
                    before = time.process_time()
                    app.advance()
                    await pilot.pause()
                    took += time.process_time() - before
                return took / frames * 1000

        print(f"{f'terminal frame, {envs} environments, a tenth changed':<58} {asyncio.run(drive()):9.1f} ms CPU")


def follow(directory: Path) -> None:
    """CPU of an Overwatch that follows a quiet journal, per second at 10 polls."""
    follower = Follower(directory / "wide")
    follower.poll()
    before = time.process_time()
    for _ in range(100):
        follower.poll()
    print(f"{'polling a quiet journal':<58} {(time.process_time() - before) * 10:9.3f} ms CPU a poll")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--envs", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--keep", type=Path, help="keep the journal in this directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as scratch:
        directory = given.keep or Path(scratch)
        print(f"{given.events} events, {write(directory, given.events):.0f} MB")
        long_run(directory)
        wide_run(given.envs, given.slots, directory)
        terminal(given.envs, Path(scratch))
        follow(Path(scratch))


if __name__ == "__main__":
    main()
