"""``esper runs prune``: what it would do, what it does, and what it leaves alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from esper.nissa.journal import JournalWriter, Supersede
from esper.nissa.reader import read_journal
from esper.scripts import runs_prune
from esper.scripts.main import main
from karn.journals import write_run
from karn.streams import story


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs_prune, "LEAST", 4096)
    for name in ("first", "second"):
        write_run(tmp_path / "runs", story(), run_id=name)
    return tmp_path / "runs"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_it_says_what_it_would_do_and_then_does_it_and_nothing_is_lost(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(read_journal(runs / "first"))
    assert main(["runs", "prune", str(runs)]) == 0
    told = capsys.readouterr().out
    assert "first: 1 segment to compress" in told and "in 2 runs would be compressed; --yes does it" in told
    assert names(runs / "first") == ["events-00001.jsonl", "run.json"]
    (runs / "first" / ".run.json.0123abcd.tmp").write_bytes(b"left by a write that was killed")
    unfinished = runs / "first" / "checkpoints" / ".ckpt-000009-step-00000018.saving"
    unfinished.mkdir(parents=True)
    assert main(["runs", "prune", str(runs), "--yes"]) == 0
    assert "2 runs compressed" in capsys.readouterr().out
    assert names(runs / "first") == ["checkpoints", "events-00001.jsonl.zst", "run.json"] and unfinished.is_dir()
    assert list(read_journal(runs / "first")) == before
    assert main(["query", str(runs / "first"), "select count(*) from events", "--csv"]) == 0
    assert main(["overwatch", "--once", str(runs / "first")]) == 0
    assert f"\n{len(before)}\n" in capsys.readouterr().out
    assert main(["runs", str(runs)]) == 0
    capsys.readouterr()
    assert main(["runs", "prune", str(runs)]) == 0
    assert capsys.readouterr().out == "nothing to do\n"
    supersede = Supersede("train", before[-1].seq or 0)
    JournalWriter(runs / "first", "first", supersede=supersede).close()  # a resume goes on behind it
    assert list(read_journal(runs / "first")) == before


def test_a_journal_that_memory_is_too_small_for_is_left_as_it_was(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, compress = list(read_journal(runs / "first")), runs_prune.compress_journal

    def short(run: Path, least: int) -> None:
        if run.name == "first":
            raise MemoryError
        compress(run, least)

    monkeypatch.setattr(runs_prune, "compress_journal", short)
    assert main(["runs", "prune", str(runs), "--yes"]) == 1
    told = capsys.readouterr()
    assert told.err == "esper: first: there is not enough memory to compress its journal, which is left as it was\n"
    assert told.out.startswith("1 run compressed") and list(read_journal(runs / "first")) == before


def test_what_goes_on_is_left_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = read_journal(runs / "second")
    seq = max(event.seq or 0 for event in last)
    with JournalWriter(runs / "second", "second", supersede=Supersede("train", seq)):
        assert main(["runs", "prune", str(runs), "--yes"]) == 1
        told = capsys.readouterr()
        assert "the run is being written" in told.err and told.err.count("\n") == 1 and "1 run compressed" in told.out
        assert main(["runs", "prune", str(runs), "--filter", "second", "--delete", "--yes"]) == 1
    assert "events-00001.jsonl" in names(runs / "second")
    write_run(runs, story()[:-1], run_id="unended")
    assert main(["runs", "prune", str(runs)]) == 0
    assert "unended: left alone: no end event, last heard" in capsys.readouterr().out


def test_age_and_deletion(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    month_ago = time.time() - 40 * 86400
    os.utime(runs / "first" / "events-00001.jsonl", (month_ago, month_ago))
    assert main(["runs", "prune", str(runs), "--older", "4w", "--delete"]) == 0
    told = capsys.readouterr().out
    assert "first: the run" in told and "second" not in told
    assert main(["runs", "prune", str(runs), "--older", "4w", "--delete", "--yes"]) == 0
    assert "1 run deleted" in capsys.readouterr().out
    assert not (runs / "first").exists() and (runs / "second").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older", "soon"], "--older 'soon'; legal: a number with h, d or w"),
        (["--older", "-3d"], "argument --older"),
        (["--delete", "--yes"], "choose with --older or --filter"),
        (["--yes", "--what"], "unrecognized arguments: --what"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    before = [names(run) for run in sorted(runs.iterdir())]
    status = main(["runs", "prune", str(runs), *arguments])
    told = capsys.readouterr()
    assert [names(run) for run in sorted(runs.iterdir())] == before
    assert said in told.err and told.err.count("\n") <= 1 and status == 2


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "prune", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
