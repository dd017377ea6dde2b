"""Journals on disk for tests, and the slow obvious reader beside the fast one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from zlib import crc32

from event_strategies import note

from esper.leyline import TelemetryEvent
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalConfig, JournalWriter, Supersede

RUN = "20261122-174533-000001-0badcafe"


def write(
    directory: Path,
    sizes: list[int],
    *,
    after_seq: int | None = None,
    close: bool = True,
    segment_bytes: int = 64 << 20,
    say: str = "x",
    run_id: str = RUN,
) -> list[TelemetryEvent]:
    """Emit batches of the given sizes (the first has one event more, the level), resuming after ``after_seq``."""
    directory.mkdir(exist_ok=True)
    supersede = None if after_seq is None else Supersede("train", after_seq)
    config = JournalConfig(batch_seconds=3600, segment_bytes=segment_bytes)
    journal = JournalWriter(directory, run_id, supersede=supersede, config=config)
    hub = NissaHub(last_seq=after_seq or 0)
    hub.add_sink(journal, name="journal")
    seen: list[TelemetryEvent] = []
    hub.add_sink(seen.append, name="list")
    hub.set_level("normal")
    for size in sizes:
        for _ in range(size):
            hub.emit(note(f"{say}{hub.last_seq + 1}"))
        hub.flush()
    if close:
        hub.close()
    else:
        leave(journal)
    return seen


def leave(journal: JournalWriter) -> None:
    """Let go without a closing commit, as a crash would: what was not committed is lost."""
    kept = journal.segment.read_bytes()
    journal.close()
    os.truncate(journal.segment, len(kept))


def committed_lines(path: Path) -> list[bytes]:
    """What one segment has committed, by the definition in the module's docstring, read slowly and obviously."""
    lines = path.read_bytes().splitlines(keepends=True)
    header = json.loads(lines[0])
    crc = crc32(lines[0][: lines[0].index(b'"crc32":') + len(b'"crc32":')], header.get("previous_crc32", 0))
    assert crc == header["crc32"]
    committed: list[bytes] = []
    batch: list[bytes] = []
    for line in lines[1:]:
        if not line.startswith(b'{"commit":') or not line.endswith(b"\n"):
            batch.append(line)
            continue
        commit = json.loads(line)["commit"]
        crc = crc32(b"".join(batch) + line[: line.index(b'"crc32":') + len(b'"crc32":')], crc)
        assert commit["crc32"] == crc and commit["count"] == len(batch)
        committed += batch
        batch = []
    return committed
