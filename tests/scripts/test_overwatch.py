from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.leyline import UsageError
from esper.scripts import overwatch
from karn.journals import write_run
from karn.streams import story


def test_once_prints_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, story()[:-1])
    assert overwatch.main([str(tmp_path), "--once"]) == 0
    said = capsys.readouterr().out
    assert "no event for" in said and "env 1" in said


def test_once_with_a_filter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, story())
    assert overwatch.main([str(run), "--once", "--filter", "env=0"]) == 0
    assert "ended, completed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "0 to 65535"),
        (["--filter", "env=1"], "--once"),
        (["--tui", "--once"], "not allowed with"),
        (["nowhere", "--once"], "no run 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as problem:
        overwatch.main(arguments)
    assert "\n" not in str(problem.value)


def test_beside_a_process_it_finds_the_run_that_the_process_writes(tmp_path: Path) -> None:
    script = (
        "import sys, time; from esper.nissa.rundir import RunDirectory; import os;"
        "RunDirectory.create(sys.argv[1], 'other', {'pid': 1});"
        "RunDirectory.create(sys.argv[1], 'mine', {'pid': os.getpid()}); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE)
    try:
        found = overwatch.await_run(tmp_path, process.pid)
    finally:
        process.communicate()
    assert found == tmp_path / "mine"
    assert overwatch.await_run(tmp_path / "elsewhere", process.pid) is None, "it is gone and has written nothing"


def test_alive() -> None:
    assert overwatch.alive(os.getpid()) and not overwatch.alive(None) and not overwatch.alive(2**22 + 1)
