"""Programs go on whoever reads them, in whatever encoding."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cutting import in_child

from esper.leyline import TelemetryEvent, TelemetryEventType
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from esper.scripts.main import main
from esper.scripts.streams import lasting, settle


@contextmanager
def pipe(encoding: str = "utf-8") -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The reading end, and a stream into it."""
    ours, its = os.pipe()
    with open(its, "w", encoding=encoding) as stream:
        yield ours, stream


def test_a_reader_that_has_gone_is_not_noticed() -> None:
    with pipe() as (ours, stream):
        os.close(ours)
        with lasting(stream) as output:
            print("nobody reads this", file=output, flush=True)
            print("nor that", file=output, flush=True)


def test_without_it_the_program_would_end() -> None:
    with pipe() as (ours, stream), pytest.raises(BrokenPipeError):
        os.close(ours)
        try:
            print("nobody reads this", file=stream, flush=True)
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_full_disk_is() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full, pytest.raises(OSError, match="No space"):
        print("lost", file=lasting(full), flush=True)


def test_what_an_encoding_lacks_is_plain_or_escaped() -> None:
    with pipe("ascii") as (ours, stream), lasting(stream) as output:
        print("5.0 ± 1.2 · π · \N{CAT FACE}", file=output, flush=True)
        assert os.read(ours, 100) == b"5.0 +- 1.2 | \\u03c0 | \\U0001f431\n"
        os.close(ours)


def test_a_stream_that_was_closed_from_the_beginning_leads_nowhere() -> None:
    with lasting(None) as output:
        print("lost", file=output)


def test_what_is_no_file_stays() -> None:
    stream = io.StringIO()
    assert lasting(stream) is stream


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = RunDirectory.create(tmp_path, "run").path
    with JournalWriter(path, "run") as journal:
        for name in ("blöck", "b\N{CAT FACE}"):
            event = TelemetryEvent(
                event_type=TelemetryEventType.COUNTERFACTUAL_UNAVAILABLE, slot_id=name, data={"reason": "x"}
            )
            event.timestamp, event.t_mono, event.producer, event.seq = 1.0, 1.0, "train", 1
            journal(event)
    return path


@pytest.mark.parametrize("command", ["query --json", "query --csv", "query", "runs", "overwatch --once"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_commands_write_in_any_encoding(command: str, encoding: str, run: Path, tmp_path: Path) -> None:
    name, *flags = command.split()
    arguments = {"query": [str(run), "select slot_id from events"], "runs": [str(tmp_path)]}.get(name, [str(run)])

    def work() -> int:
        sys.stdout = open(1, "w", encoding=encoding, closefd=False)
        settle()
        return main([name, *arguments, *flags])

    ended = in_child(work, tmp_path / "log")
    assert ended.status == 0, ended.said
    assert ended.said.isascii() or encoding != "ascii"
    if "--json" in flags:
        assert [json.loads(line)["slot_id"] for line in ended.said.splitlines()] == ["blöck", "b\N{CAT FACE}"]
