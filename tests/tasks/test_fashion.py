"""Clothes from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from esper.leyline import DataError, UsageError
from esper.tasks import TaskSpec, get_task
from esper.tasks.clothes import FILES, FOLDER, HOW
from esper.tasks.hosts import ResidualHost
from tasks.conformance import check_conformance, score_after


@pytest.fixture(scope="module")
def task() -> TaskSpec:
    if not all(Path(FOLDER, name).is_file() for name in FILES):
        pytest.skip(f"the pictures are not installed; {HOW}")
    return get_task("fashion", train=200, test=100)


def test_both_hosts_are_sound_tasks(task: TaskSpec) -> None:
    check_conformance(task, classes=10)
    assert [len(split) for split in task.data.splits().values()] == [200, 1000, 100]
    assert task.data.test.targets.bincount().tolist() == [10] * 10
    assert task.data.digest.startswith("47573f6e82a2ff6b")
    vit = get_task("fashion", train=100, test=100, host="vit")
    check_conformance(vit, classes=10)
    assert vit.data.validation.inputs.equal(task.data.validation.inputs)
    assert vit.data.test.inputs.equal(task.data.test.inputs)


def test_three_blocks_of_sixteen_channels_are_resnet_20() -> None:
    host = ResidualHost(classes=10, channels=16, blocks=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    layers = [each for each in host.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    # 0.27 million in the paper's table of its networks for CIFAR-10
    assert len(layers) == 20 and round(sum(p.numel() for p in host.parameters()) / 1e6, 2) == 0.27
    with torch.no_grad():
        sides = [host.stem(torch.zeros(1, 3, 32, 32))]
        for stage in (host.stage0, host.stage1, host.stage2):
            sides.append(stage(sides[-1]))
    assert [tuple(each.shape[1:]) for each in sides] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_what_cannot_be_is_said(task: TaskSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task fashion: .*ubyte.gz is missing; on Debian and Ubuntu: apt-get install"):
        get_task("fashion", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="unknown host of task 'fashion' 'vitt'; did you mean 'vit'"):
        get_task("fashion", host="vitt")
    with pytest.raises(UsageError, match="option blocks of task 'fashion' is 0; it must be 1 or more"):
        get_task("fashion", blocks=0)
    with pytest.raises(DataError, match="task fashion: test is 10001 examples; legal: 1 to 10000"):
        get_task("fashion", test=10_001)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "low", "high"), [("resnet", 65, 84), ("vit", 60, 84)])
def test_the_hosts_learn_and_leave_room(task: TaskSpec, host: str, low: float, high: float) -> None:
    assert low < score_after(get_task("fashion", host=host), 3) < high
