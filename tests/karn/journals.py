"""Run directories on disk for the tests of karn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from esper.leyline import TelemetryEvent
from esper.nissa.journal import JournalConfig, JournalWriter
from esper.nissa.rundir import RunDirectory

RUN_ID = "20261122-101500-abcd"


def write_run(base: Path, events: Iterable[TelemetryEvent], *, run_id: str = RUN_ID, batch: int = 16) -> Path:
    """A run directory with a manifest and a closed journal of ``events``; returns its path."""
    run = RunDirectory.create(base, run_id, {})
    with JournalWriter(run.path, run_id, config=JournalConfig(batch_events=2 * batch)) as writer:
        for number, event in enumerate(events, 1):
            writer(event)
            if number % batch == 0:
                writer.flush()
    return run.path
