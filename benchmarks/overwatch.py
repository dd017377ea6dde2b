"""How fast Overwatch is: indexing, opening and seeking a long journal, snapshots and frames of a wide run.

    uv run python benchmarks/overwatch.py --events 2000000
    uv run python benchmarks/overwatch.py --cost 5

Times are CPU time of this process unless they say wall. The first opening reads in a second process where a core is
idle (load of the last minute), and that one's CPU time stands beside. The journal is written once, in a temporary
directory or in ``--keep DIR``, from a made-up run of 16 environments with 3 slots each, over as many episodes as the
count asks for.

``--cost PAIRS`` measures instead what an open Overwatch costs a training run: the same short run with nobody looking
and with ``esper overwatch`` and a WebSocket client on it, in turns. The figure is the CPU time of the training process
alone (``getrusage``, from behind its imports), as the median over pairs. On a machine that is busy with other things
the CPU time of one and the same run wanders by more than what is to be seen.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from websockets.sync.client import connect

from esper.karn.aggregator import fold
from esper.karn.diff import diff
from esper.karn.replay import Timeline
from esper.karn.snapshot import Builder, encode
from esper.karn.source import Follower
from esper.karn.state import RunState
from esper.karn.web.columns import Columns
from esper.karn.web.feed import LISTED
from esper.karn.web.frames import Board, Mode, View, encode_frame
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
    for changed in (envs, envs // 10, 0):
        rec.events.clear()
        for env in range(changed):
            alphas = {name: 0.5 for name in names}
            epoch_done(rec, env, 5, 55.0, stages=dict.fromkeys(names, "BLENDING"), alphas=alphas)
        before = View(builder.build(state, rec.now, worst=LISTED), Mode("live"))
        fold(rec.events, state)
        began = time.process_time()
        after = View(builder.build(state, rec.now, worst=LISTED), Mode("live"))
        frame = encode_frame(2, 0, before, after, Board(*columns.pack(state, rec.now)))
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
    from esper.karn.watch import Watch

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
            app = Overwatch(Watch(run, clock=lambda: rec.now, cache=directory / "cache"), rate=0.01)
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


TRAINER = """
import json, resource, sys
import torch.optim, esper.scripts.heuristic
from esper.scripts.main import main
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
before = used()
status = main(json.loads(sys.argv[1]))
print(used() - before, file=sys.stderr)
sys.exit(status)
"""


def trained(run: Path, epochs: int, watched: bool) -> tuple[float, int]:
    """CPU seconds of a training process, and the frames that a viewer got of it."""
    arguments = ["train", "heuristic", "--task", "digits", "--max-epochs", str(epochs), "--episodes", "1"]
    arguments += ["--threads", "1", "--no-export", "--quiet", "--run-dir", str(run)]
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, json.dumps(arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    frames = _look(run, trainer) if watched else 0
    _, said = trainer.communicate()
    if trainer.returncode:
        sys.exit(f"the training run failed: {said}")
    return float(said.splitlines()[-1]), frames


def _look(run: Path, trainer: subprocess.Popen[str]) -> int:
    """Open Overwatch on ``run`` and take its frames until the trainer is done."""
    while not (run / "run.json").is_file() and trainer.poll() is None:
        time.sleep(0.05)
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    link = server.stdout.readline().split(" ", 1)[1].strip()
    place, token = link.split("/#token=")
    frames = 0
    try:
        with connect(
            f"ws://{place.removeprefix('http://')}/ws",
            additional_headers={"authorization": f"Bearer {token}"},
            max_size=None,
        ) as socket:
            while trainer.poll() is None:
                with contextlib.suppress(TimeoutError):
                    socket.recv(timeout=0.2)
                    frames += 1
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    return frames


def cost(pairs: int, epochs: int, directory: Path) -> None:
    """The same run with and without a viewer, in turns, whichever first."""
    ratios = []
    for pair in range(pairs):
        took: dict[bool, float] = {}
        for watched in (False, True) if pair % 2 else (True, False):
            took[watched], frames = trained(directory / f"cost-{pair}-{watched}", epochs, watched)
            if watched:
                seen = frames
        ratios.append(took[True] / took[False] - 1)
        print(
            f"pair {pair + 1}: {took[False]:.2f} s alone, {took[True]:.2f} s watched ({seen} frames): {ratios[-1]:+.1%}"
        )
    print(f"{'trainer CPU with a viewer, median over pairs':<58} {statistics.median(ratios):+.2%}")
    print(f"{'load of the machine':<58} {os.getloadavg()[0]:9.1f}")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--envs", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--keep", type=Path, help="keep the journal in this directory")
    parser.add_argument("--cost", type=int, metavar="PAIRS", help="measure what a viewer costs a training run instead")
    parser.add_argument("--epochs", type=int, default=60, help="of the runs of --cost")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as scratch:
        directory = given.keep or Path(scratch)
        if given.cost is not None:
            cost(given.cost, given.epochs, directory)
            return
        print(f"{given.events} events, {write(directory, given.events):.0f} MB")
        long_run(directory)
        wide_run(given.envs, given.slots, directory)
        terminal(given.envs, Path(scratch))
        follow(Path(scratch))


if __name__ == "__main__":
    main()
