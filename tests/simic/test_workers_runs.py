"""Whole runs over processes: the same as in one process, through a lost worker, a cut and a resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from cutting import Cut, Whole, in_child, run
from histories import assert_same, history

import esper.scripts.ppo
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal

TRAIN = ["train", "ppo", "--task", "tiny:tiny", "--rounds", "3", "--envs", "3", "--episode-length", "5", "--quiet"]
TRAIN += ["--checkpoint-every", "3", "--hosts", "4", "--telemetry-level", "debug"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    import torch._dynamo  # noqa: F401

    assert esper.scripts.ppo
    return Whole.of(TRAIN, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_equals_one_in_a_single_process(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def work() -> int:
        from esper.scripts.main import main
        from esper.simic.workers import WorkerPool

        step, calls = WorkerPool.step, []

        def sabotaged(self: WorkerPool, *given: object) -> object:
            calls.append(self)
            if len(calls) == 9:
                os.kill(self.workers[1].process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            return step(self, *given)  # type: ignore[arg-type]

        WorkerPool.step = sabotaged  # type: ignore[assignment, method-assign]
        return main([*TRAIN, "--workers", "2", "--run-dir", str(path)])

    ended = in_child(work, tmp_path / "log")
    assert ended.status == 0, ended.said
    assert_same(path, whole.path)
    events = list(read_journal(path, validate=True))
    (replaced,) = [event for event in events if event.event_type is T.WORKER_REPLACED]
    assert replaced.data["environments"] == [1, 2] and replaced.data["epochs_repeated"] == 3
    (end,) = [event for event in events if event.event_type is T.TRAINING_ENDED]
    (alone,) = [event for event in read_journal(whole.path) if event.event_type is T.TRAINING_ENDED]
    assert end.data["cpu_seconds"] > alone.data["cpu_seconds"], "that of its workers counts"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (2, 1)])
def test_a_run_goes_on_with_another_number_of_workers(before: int, after: int, whole: Whole, tmp_path: Path) -> None:
    path, log = tmp_path / "run", tmp_path / "log"
    command = [*TRAIN, "--workers", str(before), "--run-dir", str(path)]
    ended = run(command, log, Cut(9, function="collect._act"))
    assert ended.status == -9, ended.said
    ended = run([*TRAIN[:4], "--resume", str(path), "--workers", str(after), "--override"], log)
    assert ended.status == 0, ended.said
    assert history(path) == history(whole.path)
    assert_same(path, whole.path)
