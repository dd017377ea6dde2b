"""The default task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esper.kasmina.blueprints import build
from esper.kasmina.layout import Layout
from esper.tasks import Batches, TaskSpec, get_task
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    return get_task("digits")


def test_it_is_a_sound_task(task: TaskSpec) -> None:
    check_conformance(task, classes=10)
    assert task.metric.chance == 10.0


def test_the_split_is_fixed_for_ever(task: TaskSpec) -> None:
    assert [len(split) for split in task.data.splits().values()] == [1000, 397, 400]
    assert task.data.digest == "7f2739840fa202c3b9ec627a0537c03dd5cb99ee5864e7ef98b0b5fa1e1e29a9"
    for split in task.data.splits().values():
        counts = np.bincount(split.targets.numpy(), minlength=10) / len(split)
        assert abs(counts - 0.1).max() < 0.01


@pytest.mark.slow  # for scikit-learn's import; the digest above guards the same in every run
def test_pixels_are_scikit_learns_and_normalised_by_training_alone(task: TaskSpec) -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    mine = torch.cat([split.inputs for split in task.data.splits().values()]).flatten(1)
    scale = 16.0 / float(mine.max() - mine.min())
    rows = {tuple(np.rint(row).astype(int)) for row in ((mine - mine.min()) * scale).numpy()}
    assert rows == {tuple(row.astype(int)) for row in pixels}
    assert (
        torch.bincount(torch.cat([s.targets for s in task.data.splits().values()])).tolist()
        == np.bincount(labels).tolist()
    )
    # single precision, summed in the processor's own order
    assert abs(float(task.data.train.inputs.mean())) < 1e-5
    assert abs(float(task.data.train.inputs.std(correction=0)) - 1) < 1e-5


def test_the_plain_host_learns_a_little(task: TaskSpec) -> None:
    assert 20 < score_after(task, 6) < 70


@pytest.mark.slow
def test_a_seed_brings_what_the_host_lacks(task: TaskSpec) -> None:
    """The pilot: about 50 alone, about 90 with a 5x5 convolution in front of the first pool."""

    def trained(grow: bool) -> float:
        torch.manual_seed(0)
        host, seed = task.host(), build("conv5", 8, Layout.NCHW)
        optimizer = torch.optim.AdamW(host.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
        source = Batches(task.data.train, 100, 0)
        for epoch in range(30):
            if grow and epoch == 3:
                host.get_submodule("block0").register_forward_hook(lambda _module, _inputs, output: seed(output))
                optimizer.add_param_group({"params": list(seed.parameters()), "initial_lr": 5e-3})
                schedule.base_lrs.append(5e-3)
            for inputs, targets in source.epoch():
                optimizer.zero_grad()
                task.loss(host(inputs), targets).mean().backward()
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float(task.score(host(task.data.test.inputs), task.data.test.targets).mean())

    alone, grown = trained(grow=False), trained(grow=True)
    assert 40 < alone < 60
    assert grown > 80
