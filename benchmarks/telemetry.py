"""CPU time per event of the telemetry a run pays for, and how fast a journal is read back.

    uv run python benchmarks/telemetry.py [--events 20000] [--repeats 9] [--read 2000000]

Each figure is process CPU time (``time.process_time``: all threads, so the journal's timed commits are in it) divided
by the number of events, the median over repeats. The ways of writing are *paired*: each repeat runs every way over the
same events, building each event just before it is handed over as a run does, and the cost of building alone (``build``)
in the same repeat is taken off. ``hub + journal`` is what a run pays on top of building: stamps, encoding with its
search for NaN and infinities, commit lines with checksums, the write, and fdatasync each second.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from esper.leyline import TelemetryEvent, TelemetryEventType
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from esper.nissa.reader import JournalTail, Reading
from esper.nissa.wire import encode

T = TelemetryEventType
TARGET_MICROSECONDS = 5.0


def epoch(i: int) -> TelemetryEvent:
    """An epoch of one environment with two slots."""
    data = {
        "arm": "grown",
        "train_loss": 0.7123 / (i + 1),
        "validation_loss": 0.5211,
        "validation_metric": 91.25,
        "host_gradient_norm": 1.532,
        "learning_rate": 0.01,
        "parameters": 12345,
        "live_seeds": 2,
        "alphas": {"layer1": 1.0, "layer2": 0.5},
        "stages": {"layer1": "HOLDING", "layer2": "BLENDING"},
        "train_ms": 35.12,
        "validate_ms": 8.25,
    }
    return TelemetryEvent(event_type=T.EPOCH_COMPLETED, episode=3, epoch=i, env_id=i % 8, data=data)


def moved(i: int) -> TelemetryEvent:
    """A seed's change of stage with its health."""
    data = {
        "from": "TRAINING",
        "to": "BLENDING",
        "alpha": 0.0,
        "blueprint": "conv3",
        "parameters": 1184,
        "seed_gradient_norm_ratio": 0.42,
        "seed_gradient_norm_ratio_epoch": i,
        "gradient_health": 0.97,
        "has_vanishing": False,
        "has_exploding": False,
    }
    return TelemetryEvent(
        event_type=T.SEED_STAGE_CHANGED, episode=3, epoch=i, env_id=i % 8, slot_id="layer1", seed_id="s-7", data=data
    )


def gate(i: int) -> TelemetryEvent:
    """A gate with six structured checks, the largest event that is frequent."""
    checks = [
        {"id": f"check_{n}", "measured": 0.5 * n, "comparison": ">=", "threshold": 1.0, "passed": n > 2, "unit": "%"}
        for n in range(6)
    ]
    data = {
        "gate": "G2",
        "passed": False,
        "target_stage": "BLENDING",
        "checks_passed": ["check_3=1.5", "check_4=2", "check_5=2.5"],
        "checks_failed": ["check_0=0", "check_1=0.5", "check_2=1"],
        "message": "3 of 6 checks failed",
        "checks": checks,
        "alpha": 0.0,
    }
    return TelemetryEvent(
        event_type=T.SEED_GATE_EVALUATED, episode=3, epoch=i, env_id=i % 8, slot_id="layer1", seed_id="s-7", data=data
    )


def diverged(i: int) -> TelemetryEvent:
    """An epoch whose losses are not finite: the slow path of the encoder."""
    event = epoch(i)
    event.data |= {"train_loss": math.nan, "validation_loss": math.inf, "validation_metric": None}
    return event


KINDS: dict[str, Callable[[int], TelemetryEvent]] = {
    "epoch": epoch,
    "stage change": moved,
    "gate, 6 checks": gate,
    "epoch, diverged": diverged,
}
"""The mix has them 10 : 3 : 1 : 0, about what a run of ten epochs a seed stage has."""
MIX = (epoch,) * 10 + (moved,) * 3 + (gate,)


def cpu(work: Callable[[], None]) -> float:
    """CPU seconds of this process, garbage of earlier work excluded."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


def ways(make: Callable[[int], TelemetryEvent], events: int, folder: Path) -> dict[str, float]:
    """way -> CPU microseconds per event; all but ``build`` are what the way adds to building the event."""
    with JournalWriter(_fresh(folder), "bench") as journal, NissaHub() as full, NissaHub() as empty:
        full.add_sink(journal, name="journal")
        handed_to: dict[str, Callable[[TelemetryEvent], object]] = {
            "build": lambda event: None,
            "msgspec alone": msgspec.json.Encoder().encode,
            "encode": encode,
            "hub, no sink": empty.emit,
            "hub + journal": full.emit,
        }
        seconds = {way: cpu(lambda action=action: _each(make, events, action)) for way, action in handed_to.items()}
        seconds["hub + journal"] += cpu(lambda: full.flush(barrier=True))
    build = seconds["build"]
    return {way: (each - (build if way != "build" else 0.0)) / events * 1e6 for way, each in seconds.items()}


def _each(make: Callable[[int], TelemetryEvent], events: int, action: Callable[[TelemetryEvent], object]) -> None:
    for i in range(events):
        action(make(i))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def writing(events: int, repeats: int, folder: Path) -> float:
    """Print the table of writing costs; returns the mix's microseconds per event."""
    makers = {"mix": lambda i: MIX[i % len(MIX)](i), **KINDS}
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in makers}
    for _ in range(repeats):
        for kind, make in makers.items():
            measured[kind].append(ways(make, events, folder))
    columns = list(measured["mix"][0])
    print(f"CPU microseconds per event, median [lowest, highest] of {repeats} x {events:,} events")
    print(f"{'event':<16}" + "".join(f"{column:>22}" for column in columns) + f"{'bytes':>8}")
    for kind, make in makers.items():
        size = statistics.mean(len(encode(make(i))) for i in range(140))
        cells = []
        for column in columns:
            values = [row[column] for row in measured[kind]]
            cells.append(f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]")
        print(f"{kind:<16}" + "".join(f"{cell:>22}" for cell in cells) + f"{size:>8.0f}")
    return statistics.median(row["hub + journal"] for row in measured["mix"])


def reading(events: int, folder: Path) -> None:
    """Print how long a journal of ``events`` takes to read in each way."""
    with JournalWriter(_fresh(folder), "bench") as journal, NissaHub() as hub:
        hub.add_sink(journal)
        for i in range(events):
            hub.emit(MIX[i % len(MIX)](i))
    size = sum(path.stat().st_size for path in folder.iterdir())
    passes: dict[str, Callable[[], int]] = {
        "committed batches, checksums only": lambda: sum(batch.count for batch in Reading(folder).batches()),
        "events": lambda: sum(1 for _ in Reading(folder)),
        "events through a tail": lambda: sum(map(len, iter(partial(JournalTail(folder).poll, limit=10_000), []))),
        "events, every payload validated": lambda: sum(1 for _ in Reading(folder, validate=True)),
    }
    print(f"\nreading {events:,} events, {size / 1e6:.0f} MB, one pass each")
    for name, work in passes.items():
        start, wall = time.process_time(), time.perf_counter()
        found = work()
        seconds = time.process_time() - start
        assert found >= events
        passed = time.perf_counter() - wall
        print(f"{name:<36}{seconds:>8.2f} s CPU{passed:>8.2f} s wall{seconds / found * 1e6:>8.2f} us/event")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--read", type=int, default=2_000_000)
    args = parser.parse_args()
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, {os.cpu_count()} cores, load {load}")
    with tempfile.TemporaryDirectory() as base:
        median = writing(args.events, args.repeats, Path(base) / "run")
        met = "met" if median <= TARGET_MICROSECONDS else "missed"
        print(f"target for the mix: hub + journal <= {TARGET_MICROSECONDS} us/event: {median:.2f}, {met}")
        if args.read:
            reading(args.read, Path(base) / "run")


if __name__ == "__main__":
    main()
