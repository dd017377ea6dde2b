"""Run as a program: forks a writer for each directory named on standard input, to be killed by the test.

A writer prints its process id, then the last seq after each ``flush`` has returned. It loads no torch, so that it is
born quickly, and keeps writing until it is killed.
"""

from __future__ import annotations

import os
import sys

from esper.leyline import TelemetryEvent, TelemetryEventType
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalConfig, JournalWriter


def payload(seq: int) -> str:
    """What the event of this seq says, so that the test can tell an invented one."""
    return f"{seq * 2654435761 % 2**32:08x}"


def write_for_ever(directory: str) -> None:
    """Emit, flush every few events, acknowledge, rotate and compress often."""
    config = JournalConfig(batch_events=50, batch_seconds=0.002, segment_bytes=20_000, compress_bytes=1)
    journal = JournalWriter(directory, "r", config=config)
    hub = NissaHub()
    hub.add_sink(journal)
    hub.set_level("normal")
    os.write(1, b"%d\n" % os.getpid())
    while True:
        for _ in range(hub.last_seq % 70 + 1):
            data = {"reason": payload(hub.last_seq + 1)}
            hub.emit(TelemetryEvent(event_type=TelemetryEventType.COUNTERFACTUAL_UNAVAILABLE, data=data))
        hub.flush()
        os.write(1, b"%d\n" % hub.last_seq)


if __name__ == "__main__":
    assert "torch" not in sys.modules
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write_for_ever(line.rstrip("\n"))
        os.waitpid(child, 0)
        os.write(1, b"gone\n")
