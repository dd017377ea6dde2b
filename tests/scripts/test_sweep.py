"""``esper sweep``: what it prints and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.scripts.main import main

SHORT = ["--task", "toy:toy_task", "--policy", "static", "--compare", "", "--max-epochs", "1", "--episodes", "1"]


def test_it_searches_and_says_what_is_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "sweep",
        "heuristic",
        *SHORT,
        "--over",
        "lr=0.001..0.1:log",
        "--trials",
        "1",
        "--into",
        str(tmp_path / "s"),
    ]
    assert main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("base    validation ") and lines[0].endswith(" %, 1 seed")
    assert lines[1].startswith("trial-0000  lr=") and lines[2].startswith("best by validation: trial-0000, lr ")
    assert "on the test split it is ahead of the settings that it started from by " in lines[3]
    assert lines[4] == f"all runs: esper runs {tmp_path / 's'} --sort=-result"
    assert main(["runs", str(tmp_path / "s"), "--sort=-result"]) == 0
    assert "trial-0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--over", "lr=0.1..1"], "--into FOLDER is needed"),
        (["--into", "x"], "nothing is searched: --over NAME=LOW..HIGH"),
        (["--into", "x", "--over", "lrr=0.1..1"], "unknown setting 'lrr'; did you mean 'lr'"),
        (["--into", "x", "--over", "lr=0.1..1", "--over", "lr=1..2"], "--over names lr twice"),
        (["--into", "x", "--over", "lr=0.1..1", "--trials", "0"], "trials is 0; it must be 1 or more"),
        (["--into", "x", "--over", "lr=0.1..1", "--run-dir", "y"], "run_dir is every trial's own"),
        (["--into", "x", "--over", "lr=0.1..1", "--task", "digit"], "unknown task 'digit'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "heuristic", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not Path("x").exists()
