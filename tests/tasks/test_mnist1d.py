"""MNIST-1D, generated."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from esper.leyline import DataError
from esper.tasks import TaskSpec, get_task
from esper.tasks.mnist1d import load_mnist1d
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def small() -> TaskSpec:
    return get_task("mnist1d", train=300, validation=45, test=40)


def test_it_is_a_sound_task(small: TaskSpec) -> None:
    check_conformance(small, classes=10)
    assert [len(split) for split in small.data.splits().values()] == [300, 45, 40]


def test_generating_leaves_the_callers_random_state(small: TaskSpec) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index,union-attr]
    again = load_mnist1d.__wrapped__(300, 45, 40)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index,union-attr]
    assert again.digest == small.data.digest


def test_a_larger_test_split_leaves_the_others(small: TaskSpec) -> None:
    larger = load_mnist1d.__wrapped__(300, 45, 60)
    assert torch.equal(larger.train.inputs, small.data.train.inputs)
    assert torch.equal(larger.validation.inputs, small.data.validation.inputs)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="test is 0 examples"):
        get_task("mnist1d", test=0)


@pytest.mark.slow
def test_the_published_examples_and_a_host_that_learns() -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    task = get_task("mnist1d")
    published = make_dataset(get_dataset_args())
    # published in double precision, kept in single
    assert np.allclose(task.data.train.inputs[:, 0], published["x"], atol=1e-6)
    assert np.allclose(task.data.validation.inputs[:, 0], published["x_test"], atol=1e-6)
    assert 30 < score_after(task, 10) < 65
