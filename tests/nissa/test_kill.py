"""kill -9 at random moments: nothing acknowledged is lost, nothing is invented, the tail is reported."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nursery import payload

from esper.nissa.reader import JournalTail, read_journal
from esper.nissa.segments import list_segments


@contextmanager
def nursery() -> Iterator[subprocess.Popen[bytes]]:
    program = Path(__file__).with_name("nursery.py")
    with subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def kill_one(process: subprocess.Popen[bytes], directory: Path, seconds: float) -> tuple[int, int]:
    """(events acknowledged before the kill, events found after it)"""
    assert process.stdin is not None and process.stdout is not None
    directory.mkdir()
    process.stdin.write(f"{directory}\n".encode())
    process.stdin.flush()
    writer = int(process.stdout.readline())
    acknowledged = int(process.stdout.readline())
    time.sleep(seconds)
    os.kill(writer, signal.SIGKILL)
    while (line := process.stdout.readline()) != b"gone\n":
        acknowledged = int(line)
    reading = read_journal(directory, validate=True)
    events = list(reading)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert all(event.data == {"reason": payload(event.seq or 0)} for event in events[1:])
    assert not reading.report.closed and not reading.report.gaps
    for torn in reading.report.torn:
        assert torn.offset + torn.bytes == torn.file.stat().st_size
    assert sum(path.suffix == ".zst" for path in directory.iterdir()) >= len(list_segments(directory)) - 3
    assert len(JournalTail(directory).poll()) == len(events)
    return acknowledged, len(events)


def kill_many(tmp_path: Path, times: int, seed: int) -> tuple[int, int]:
    rng = random.Random(seed)
    acknowledged = found = 0
    with nursery() as process:
        for number in range(times):
            acked, read = kill_one(process, tmp_path / str(number), rng.uniform(0, 0.05))
            assert read >= acked, f"{acked - read} acknowledged events lost in kill {number}"
            acknowledged += acked
            found += read
    return acknowledged, found


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    acknowledged, found = kill_many(tmp_path, 20, seed=3)
    assert found >= acknowledged > 20


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    acknowledged, found = kill_many(tmp_path, 200, seed=4)
    print(f"200 kills: {acknowledged} acknowledged, 0 lost, {found} found, 0 invented")
