"""Digits on photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esper.tasks import TaskSpec, get_task
from esper.tasks.colour import blend, channel_statistics
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    return get_task("digits-colour")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_conformance(task, classes=10)
    assert [len(split) for split in task.data.splits().values()] == [3000, 1000, 1000]
    assert task.data.test.targets.bincount().tolist() == [100] * 10


def test_blending_is_the_difference_to_a_crop_of_the_region() -> None:
    photo = np.arange(100 * 200 * 3, dtype=np.int64).reshape(1, 100, 200, 3).astype(np.uint8)
    digit = np.zeros((1, 28, 28), dtype=np.int64)
    digit[0, 5, 7] = 200
    region = ((0.2, 0.6), (0.5, 1.0))
    (picture,) = blend(digit, photo, region, np.random.RandomState(1))
    crops = [
        (top, left)
        for top in range(20, 60 - 31)
        for left in range(100, 200 - 31)
        if np.array_equal(photo[0, top, left : left + 32].T, picture[:, 0])
    ]
    assert crops
    top, left = crops[0]
    under = photo[0, top + 7, left + 9].astype(int)
    assert picture[:, 7, 9].tolist() == np.abs(under - 200).tolist()


def test_channel_statistics_are_those_of_the_pixels() -> None:
    pictures = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    mean, std = channel_statistics(pictures)
    values = pictures.double().transpose(0, 1).flatten(1)
    assert mean == pytest.approx(values.mean(dim=1).tolist())
    assert std == pytest.approx(values.std(dim=1, correction=0).tolist())


@pytest.mark.slow
def test_the_host_learns_and_leaves_room(task: TaskSpec) -> None:
    assert 25 < score_after(task, 6) < 90
