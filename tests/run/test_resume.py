"""A heuristic run that is cut anywhere and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cutting import Cut, Whole, run
from histories import assert_same, without_clock

import esper.scripts.heuristic
from esper.karn.report import write_report
from esper.karn.runs import describe_run
from esper.leyline import EnvSpec
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.run.session import RUN
from esper.tamiyo.policies.random import RandomPolicy

TRAIN = ["train", "heuristic", "--task", "toy:toy_task", "--episodes", "2", "--max-epochs", "7", "--quiet"]
TRAIN += ["--compare", "random", "--checkpoint-every", "3"]


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    """Children find imported what they need, and draw no figures."""
    import torch._dynamo  # noqa: F401

    patch = pytest.MonkeyPatch()
    patch.setattr(esper.scripts.heuristic, "print_summary", lambda path, console: None)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole.of(TRAIN, tmp_path_factory.mktemp("whole"))


def test_killed_in_the_middle_of_an_epoch(whole: Whole, tmp_path: Path) -> None:
    steps = whole.calls.by_function["schedules.moment"]
    path = whole.cut_and_resume([Cut(steps[len(steps) // 2] + 3)], tmp_path)
    assert_same(path, whole.path)
    assert reported(path) == reported(whole.path)


def reported(path: Path) -> str:
    """What the report says, without seconds and without the number of lines in the journal."""
    write_report(path, figures=False)
    report = json.loads((path / "report" / "report.json").read_text())
    assert {damage["kind"] for damage in report.pop("damage")} <= {"resumed", "torn"}
    del report["events"]
    return re.sub(r"after \d+ s", "after some time", repr(without_clock(report)))


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(whole: Whole, tmp_path: Path) -> None:
    assert_same(whole.cut_and_resume([Cut(5, function="checkpoint._write")], tmp_path), whole.path)


@pytest.mark.slow
def test_killed_anywhere_and_killed_again_after_the_resume(whole: Whole, tmp_path: Path) -> None:
    cut = whole.anywhere(1)
    assert_same(whole.cut_and_resume([Cut(cut), Cut((whole.end - cut) // 3)], tmp_path), whole.path)


@pytest.mark.signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_leaves_a_checkpoint_of_the_next_boundary(number: int, whole: Whole, tmp_path: Path) -> None:
    path = whole.cut_and_resume([Cut(whole.anywhere(2) // 3, number)], tmp_path)
    assert_same(path, whole.path)
    superseded = list(read_journal(path).superseded())
    (ended,) = [event for event in superseded if event.event_type is T.TRAINING_ENDED]
    assert ended.data["status"] == "preempted" and f"--resume {path}" in ended.data["reason"]
    (saved,) = [e for e in superseded if e.event_type is T.CHECKPOINT_SAVED and e.data["reason"] == "signal"]
    (loaded,) = [event for event in read_journal(path, validate=True) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["step"] == saved.data["step"] and loaded.data["exact"] and loaded.producer == RUN
    assert describe_run(path).end_status == "completed"


@pytest.mark.slow
@pytest.mark.signals
@pytest.mark.parametrize("number", range(20))
def test_cut_at_random(whole: Whole, tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    cuts = [Cut(whole.anywhere(number), draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))]
    if number % 3 == 0:
        cuts.append(Cut(draw.randrange(3000, 8000)))
    assert_same(whole.cut_and_resume(cuts, tmp_path), whole.path)


def test_a_run_whose_policy_forgets_is_another(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would notice."""
    run([*TRAIN, "--run-dir", str(tmp_path / "run")], tmp_path / "log", Cut(whole.first_checkpoint + 500))
    monkeypatch.setattr(RandomPolicy, "load", lambda self, state: self.reset([EnvSpec(1, 0, 99, 7)]))
    assert run([*TRAIN[:4], "--resume", str(tmp_path / "run")], tmp_path / "log").status == 0
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", whole.path)
