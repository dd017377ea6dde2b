"""What an open Overwatch costs a training run: CPU time of the trainer for an epoch, watched and not.

    uv run python benchmarks/overwatch_cost.py --seconds 300

One long run is watched by ``esper overwatch`` and a WebSocket client, and the viewer is stopped and continued
(SIGSTOP, SIGCONT) in windows of a few seconds, so that a watched and an unwatched window of the very same work lie side
by side. Whole runs in pairs say nothing here: the CPU time of one and the same run wanders by 10 % on a shared machine.
CPU time is that of all the trainer's threads by the scheduler's clock, taken at the ends of epochs. The first epochs,
in which seeds grow, are left out; so is the epoch in which the viewer is stopped or continued.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from esper.karn.stats import interval
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal

ESPER = [sys.executable, "-m", "esper.scripts.main"]
GROWN = 15
"""Epochs until the run has its last seed."""


class Clock(threading.Thread):
    """Samples ``(time, CPU seconds of the trainer)`` until its process ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.tasks = Path(f"/proc/{pid}/task")
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        """Every 5 ms."""
        with contextlib.suppress(OSError):
            while True:
                used = sum(int((task / "schedstat").read_text().split()[0]) for task in self.tasks.iterdir())
                self.samples.append((time.time(), used / 1e9))
                time.sleep(0.005)

    def at(self, moment: float) -> float:
        """CPU seconds at a time, between the samples around it."""
        place = bisect.bisect(self.samples, (moment, math.inf))
        (t0, c0), (t1, c1) = self.samples[place - 1], self.samples[min(place, len(self.samples) - 1)]
        return c0 if t1 <= t0 else c0 + (c1 - c0) * (moment - t0) / (t1 - t0)


def opened(run: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Overwatch on ``run`` with a client that takes every frame; the list grows by one with each."""
    server = subprocess.Popen([*ESPER, "overwatch", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    place, token = server.stdout.readline().split(" ", 1)[1].strip().split("/#token=")
    frames: list[int] = []

    def look() -> None:
        address = f"ws://{place.removeprefix('http://')}/ws"
        headers = {"authorization": f"Bearer {token}"}
        # a stopped server answers no ping
        with (
            contextlib.suppress(ConnectionClosed),
            connect(address, additional_headers=headers, max_size=None, ping_interval=None) as socket,
        ):
            for frame in socket:
                frames.append(len(frame))

    threading.Thread(target=look, daemon=True).start()
    return server, frames


def measured(run: Path, seconds: float, window: float) -> tuple[Clock, list[tuple[float, float, bool]], int]:
    """Run and watch: the clock, the windows as (start, end, watched), and the frames that came."""
    arguments = ["--task", "digits", "--episodes", "1", "--max-epochs", "100000", "--threads", "1", "--no-export"]
    command = [*ESPER, "train", "heuristic", *arguments, "--quiet", "--run-dir", str(run)]
    trainer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clock, server, windows = Clock(trainer.pid), None, []
    try:
        while not (run / "run.json").is_file():
            if trainer.poll() is not None:
                sys.exit("the training run ended before it began")
            time.sleep(0.05)
        clock.start()
        server, frames = opened(run)
        while epochs(run) < GROWN:
            time.sleep(0.5)
        for number in range(int(seconds / window)):
            # watched, not, not, watched: a drift of the machine weighs on both alike
            watched = number % 4 in (0, 3)
            server.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
            start = time.time()
            time.sleep(window)
            windows.append((start, time.time(), watched))
    finally:
        for process in (server, trainer):
            if process is not None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait()
    return clock, windows, len(frames)


def ends(run: Path) -> list[float]:
    """Times at which epochs were completed."""
    return [
        event.timestamp
        for event in read_journal(run)
        if event.event_type is T.EPOCH_COMPLETED and event.timestamp is not None
    ]


def epochs(run: Path) -> int:
    """Epochs completed so far."""
    return len(ends(run))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--window", type=float, default=3.0, help="seconds, watched or not")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as scratch:
        run = Path(scratch) / "run"
        clock, windows, frames = measured(run, given.seconds, given.window)
        moments = ends(run)
        per_epoch = []
        for start, end, _ in windows:
            inside = [moment for moment in moments if start <= moment <= end]
            if len(inside) < 3:
                sys.exit(f"{len(inside)} epochs ended in a window of {given.window} s; give it a longer --window")
            per_epoch.append((clock.at(inside[-1]) - clock.at(inside[0])) / (len(inside) - 1))
        # pair i is windows 2i and 2i + 1; which of the two was watched alternates
        pairs = [
            math.log(per_epoch[i] / per_epoch[i + 1]) * (1 if windows[i][2] else -1)
            for i in range(0, len(per_epoch) - 1, 2)
        ]
        print(f"{len(moments)} epochs, {frames} frames, {len(pairs)} pairs of {given.window:g} s windows")
        print(f"CPU an epoch, unwatched: {statistics.median(per_epoch) * 1e3:.1f} ms")
        found = interval(pairs)
        assert found is not None and found.low is not None and found.high is not None
        print(f"trainer CPU with a viewer: {found.mean:+.2%} ({found.low:+.2%} to {found.high:+.2%})")
        print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
