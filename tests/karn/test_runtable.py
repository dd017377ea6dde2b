from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esper.karn.filter import parse
from esper.karn.report import write_report
from esper.karn.runtable import chosen, run_about, run_table, text
from esper.leyline import TelemetryEvent, UsageError
from esper.nissa.journal import JournalWriter
from esper.nissa.manifest import DIFF_BYTES, Setting
from esper.nissa.rundir import RunDirectory
from karn.streams import story
from karn.test_verdict import BETTER, run_of

CONFIG = {"lr": 0.01, "episodes": 3, "run_dir": "/a", "compare": ["random", "static"], "quiet": False}


def write(base: Path, name: str, events: list[TelemetryEvent], **changed: Any) -> Path:
    config = {key: Setting("flag", value) for key, value in {**CONFIG, **changed}.items() if value is not None}
    run = RunDirectory.create(base, name, {"config": config})
    with JournalWriter(run.path, name) as writer:
        for event in events:
            writer(event)
    return run.path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    guessing = run_of({"heuristic": [10.1, 9.9], "static": [10.0, 10.0]})
    paths = [
        write(tmp_path, "a-good", run_of(BETTER), run_dir="/b"),
        write(tmp_path, "b-guess", guessing, lr=1e-9),
        write(tmp_path, "c-failed", run_of(BETTER, status="failed", reason="the loss is not finite"), lr="auto"),
    ]
    write_report(paths[0], figures=False)
    write_report(paths[1], figures=False)
    return paths


def test_only_settings_that_differ_are_columns_and_the_verdict_is_the_reports(three: list[Path]) -> None:
    table = run_table(three, time.time())
    assert table.keys == ["lr"]
    good, guess, failed = table.rows
    assert (good.level, good.arm, good.split) == ("ok", "heuristic", "test") and good.result == pytest.approx(91.1667)
    assert guess.level == "bad" and (guess.headline or "").startswith("No better than guessing")
    assert (failed.level, failed.headline, failed.state) == ("critical", "the loss is not finite", "failed")
    assert failed.result == 92.5, "of the newest episode, where there is no report"
    os.utime(three[0] / "report" / "report.json", (1, 1))
    assert run_table(three[:1], time.time()).rows[0].headline is None, "a report of before is not a verdict of now"


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ("", ["a-good", "b-guess", "c-failed"]),
        ("level>=bad", ["b-guess", "c-failed"]),
        ("lr<1", ["a-good", "b-guess"]),
        ("lr=0.01", ["a-good"]),
        ("lr!=0.01", ["b-guess", "c-failed"]),
        ("lr=auto", ["c-failed"]),
        ("metric>50 -state=failed", ["a-good"]),
        ("guessing", ["b-guess"]),
        ("run=a-good,b-guess task=digits", ["a-good", "b-guess"]),
    ],
)
def test_the_filter_language_over_runs(three: list[Path], terms: str, names: list[str]) -> None:
    table = run_table(three, time.time())
    rows = chosen(table, parse(terms, table.keys))
    assert [row.name for row in rows] == names
    shown = text(table, rows)
    assert ("hidden by the filter" in shown) is (len(names) < 3)


def test_order_and_what_there_is_not(three: list[Path]) -> None:
    table = run_table(three, time.time())
    by_rate = [row.name for row in chosen(table, parse(""), "-lr")]
    assert by_rate == ["c-failed", "a-good", "b-guess"]
    assert [row.name for row in chosen(table, parse(""), "result")] == ["b-guess", "a-good", "c-failed"]
    with pytest.raises(UsageError, match="unknown column 'size'"):
        chosen(table, parse(""), "size")
    with pytest.raises(UsageError, match="unknown field 'momentum'"):
        parse("momentum=1", table.keys)
    assert text(run_table([], 0.0), []) == "no runs here\n"


def test_a_thousand_runs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, f"run-{number}", story()[:3], lr=number / 10) for number in range(4)]
    assert [row.settings["lr"] for row in run_table(paths, 0.0).rows] == [0.0, 0.1, 0.2, 0.3]
    monkeypatch.setattr("esper.karn.runtable.open_segment", lambda path: pytest.fail("read again"))
    run_table(paths, 1.0)


def test_how_a_run_was_started(tmp_path: Path) -> None:
    """In a repository with changes: the command line, the revision and the difference, up to its limit."""
    where = tmp_path / "repository"
    where.mkdir()
    script = "import sys; from esper.nissa.rundir import RunDirectory; RunDirectory.create('runs', sys.argv[1])"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (where / "file").write_text("one\n")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], cwd=where, check=True)

    def start(name: str) -> Path:
        subprocess.run(
            [sys.executable, "-c", script, name, "--lr", "a b", "--at=https://u:pw@h.example/S?k"],
            cwd=where,
            check=True,
        )
        return where / "runs" / name

    clean = run_about(start("clean"))
    assert (
        clean.command == "-c clean --lr 'a b' '--at=https://h.example/…'"
        and clean.dirty is False
        and clean.diff == ""
        and clean.revision
    )
    (where / "file").write_text("two\n")
    dirty = run_about(start("dirty"))
    assert dirty.dirty is True and "-one\n+two" in dirty.diff and dirty.diff_bytes == len(dirty.diff)
    (where / "file").write_text("x" * 3 * DIFF_BYTES)
    large = run_about(start("large"))
    assert len(large.diff) == DIFF_BYTES < large.diff_bytes
    assert large.host and large.cpus and large.python and large.packages["esper"]
