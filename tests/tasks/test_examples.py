"""A regression task: lower is better, and the unit is the study's own."""

from __future__ import annotations

import pytest
import torch

from esper.tasks import TaskSpec, get_task
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    return get_task("diabetes")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_conformance(task, classes=None)
    assert [len(split) for split in task.data.splits().values()] == [282, 80, 80]
    assert not task.metric.higher_is_better
    assert task.data.train.inputs.mean(dim=0).abs().max() < 1e-5


def test_the_score_is_in_points_of_the_study(task: TaskSpec) -> None:
    targets = torch.cat([split.targets for split in task.data.splits().values()])
    zero = torch.zeros(())
    points = task.score(targets, zero) * targets.sign() - task.score(targets.min(), zero) * targets.min().sign()
    # the study's values are whole numbers from 25 to 346
    # targets are kept in single precision, 3e-5 points at 346
    assert float(points.max()) == pytest.approx(346 - 25, rel=1e-4)
    assert torch.allclose(points, points.round(), atol=1e-3)


def test_the_host_beats_the_best_constant(task: TaskSpec) -> None:
    assert task.metric.chance is not None
    assert score_after(task, 8) < 0.9 * task.metric.chance
