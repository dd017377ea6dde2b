"""A run that is cut anywhere and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cutting import CallCounter, Cut, count_calls, run
from histories import assert_same

from esper.karn.runs import describe_run
from esper.leyline import RowSpec
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.simic.session import RUN
from esper.tamiyo.policies.random import RandomPolicy

TRAIN = ["train", "heuristic", "--task", "toy:toy_task", "--episodes", "2", "--max-epochs", "7", "--quiet"]
TRAIN += ["--compare", "random", "--checkpoint-every", "3"]


@dataclass(frozen=True)
class Whole:
    """The uninterrupted run and the calls that it took."""

    path: Path
    calls: CallCounter

    @property
    def first_checkpoint(self) -> int:
        """The call after which there is a checkpoint."""
        return self.calls.by_function["checkpoint._delete_old"][0]

    @property
    def end(self) -> int:
        """The call with which training was over."""
        return self.calls.by_function["journal.close"][-1]


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    """Children write no report, and find what they import imported: it would take longer than the run."""
    import torch._dynamo  # noqa: F401

    import esper.scripts.heuristic

    patch = pytest.MonkeyPatch()
    patch.setattr(esper.scripts.heuristic, "print_summary", lambda path, console: None)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "run"
    return Whole(path, count_calls([*TRAIN, "--run-dir", str(path)], folder / "log"))


def resume(path: Path, log: Path, cut: Cut | None = None) -> int:
    ended = run(["train", "heuristic", "--resume", str(path)], log, cut)
    assert ended.status in (0, -signal.SIGKILL), ended.said
    return ended.status


def anywhere(whole: Whole, number: int) -> int:
    return random.Random(number).randrange(whole.first_checkpoint, whole.end)


def check_cut(whole: Whole, cuts: list[Cut], folder: Path) -> None:
    path = folder / "run"
    ended = run([*TRAIN, "--run-dir", str(path)], folder / "log", cuts[0])
    stopped = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(cuts[0].signal)]
    assert ended.status == stopped, ended.said
    for cut in cuts[1:]:
        resume(path, folder / "log", cut)
    assert resume(path, folder / "log") == 0
    assert_same(path, whole.path)


def test_killed_in_the_middle_of_an_epoch(whole: Whole, tmp_path: Path) -> None:
    steps = whole.calls.by_function["schedules.moment"]
    check_cut(whole, [Cut(steps[len(steps) // 2] + 3)], tmp_path)


def test_killed_while_a_checkpoint_is_written(whole: Whole, tmp_path: Path) -> None:
    check_cut(whole, [Cut(5, function="checkpoint._write")], tmp_path)


def test_killed_anywhere_and_killed_again_after_the_resume(whole: Whole, tmp_path: Path) -> None:
    cut = anywhere(whole, 1)
    check_cut(whole, [Cut(cut), Cut((whole.end - cut) // 3)], tmp_path)


def test_asked_to_stop_it_leaves_a_checkpoint_of_the_next_boundary(whole: Whole, tmp_path: Path) -> None:
    check_cut(whole, [Cut(anywhere(whole, 2) // 3, signal.SIGTERM)], tmp_path)
    run_path = tmp_path / "run"
    saved = [event for event in read_journal(run_path) if event.event_type is T.CHECKPOINT_SAVED]
    assert all(event.producer == RUN for event in saved)
    superseded = list(read_journal(run_path).superseded())
    (ended,) = [event for event in superseded if event.event_type is T.TRAINING_ENDED]
    assert ended.data["status"] == "preempted" and "--resume" in ended.data["reason"]
    (signalled,) = [e for e in superseded if e.event_type is T.CHECKPOINT_SAVED and e.data["reason"] == "signal"]
    (loaded,) = [event for event in read_journal(run_path) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["step"] == signalled.data["step"] and loaded.data["exact"]
    info = describe_run(run_path)
    assert info.end_status == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_cut_at_random(whole: Whole, tmp_path: Path, number: int) -> None:
    number += 100
    how = random.Random(number).choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    cuts = [Cut(anywhere(whole, number), how)]
    if number % 2:
        cuts.append(Cut(random.Random(number).randrange(20_000)))
    check_cut(whole, cuts, tmp_path)


def test_a_run_whose_policy_forgets_is_another(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would notice."""
    path = tmp_path / "run"
    run([*TRAIN, "--run-dir", str(path)], tmp_path / "log", Cut(whole.first_checkpoint + 500))
    monkeypatch.setattr(RandomPolicy, "load", lambda self, state: self.reset([RowSpec(1, 0, 99, 7)]))
    resume(path, tmp_path / "log")
    with pytest.raises(AssertionError):
        assert_same(path, whole.path)
