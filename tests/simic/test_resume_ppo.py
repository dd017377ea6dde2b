"""A PPO run that is cut anywhere, within a rollout too, and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cutting import Cut, Whole, run
from histories import assert_same

import esper.scripts.ppo
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.simic.collect import Collector

TRAIN = ["train", "ppo", "--task", "tiny:tiny", "--rounds", "3", "--envs", "3", "--episode-length", "5", "--quiet"]
TRAIN += ["--checkpoint-every", "3", "--rent-on", "macs", "--telemetry-level", "debug"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    import torch._dynamo  # noqa: F401

    assert esper.scripts.ppo
    return Whole.of(TRAIN, tmp_path_factory.mktemp("whole"))


def test_killed_in_the_middle_of_a_rollout(whole: Whole, tmp_path: Path) -> None:
    steps = whole.calls.by_function["collect._act"]
    path = whole.cut_and_resume([Cut(steps[8] + 100)], tmp_path)
    assert_same(path, whole.path)
    (loaded,) = [event for event in read_journal(path, validate=True) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["step"] == 6, "one step into the second round"


@pytest.mark.slow
def test_killed_in_the_middle_of_an_update(whole: Whole, tmp_path: Path) -> None:
    updates = whole.calls.by_function["ppo._descend"]
    assert_same(whole.cut_and_resume([Cut(updates[-1] + 1)], tmp_path), whole.path)


def test_killed_while_a_checkpoint_is_written_and_again_after_the_resume(whole: Whole, tmp_path: Path) -> None:
    cuts = [Cut(8, function="checkpoint._write"), Cut(2, function="checkpoint._write")]
    assert_same(whole.cut_and_resume(cuts, tmp_path), whole.path)


@pytest.mark.signals
def test_asked_to_stop(whole: Whole, tmp_path: Path) -> None:
    assert_same(whole.cut_and_resume([Cut(whole.anywhere(3), signal.SIGINT)], tmp_path), whole.path)


@pytest.mark.slow
@pytest.mark.signals
@pytest.mark.parametrize("number", range(20))
def test_cut_at_random(whole: Whole, tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    cuts = [Cut(whole.anywhere(number), draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))]
    if number % 3 == 0:
        cuts.append(Cut(draw.randrange(3000, 8000)))
    assert_same(whole.cut_and_resume(cuts, tmp_path), whole.path)


def test_a_learner_that_forgets_where_its_draws_were_is_another(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison would notice."""
    run([*TRAIN, "--run-dir", str(tmp_path / "run")], tmp_path / "log", Cut(whole.first_checkpoint + 500))
    restore = Collector.restore

    def forget(self: Collector, saved: Mapping[str, Any]) -> None:
        fresh = self.generator.get_state()
        restore(self, saved)
        self.generator.set_state(fresh)

    monkeypatch.setattr(Collector, "restore", forget)
    assert run([*TRAIN[:4], "--resume", str(tmp_path / "run")], tmp_path / "log").status == 0
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", whole.path)
