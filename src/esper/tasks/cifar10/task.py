"""The task ``cifar10``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Generator, Tensor

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.cifar10.files import Expected, read
from esper.tasks.colour import channel_statistics
from esper.tasks.hosts import ConvHost
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tasks.sources import stratified_order

VARIABLE: Final = "ESPER_DATA"
HELD_BACK: Final = 0.1
"""Share of the training pictures that is validation."""
SHIFT: Final = 4
"""Most pixels by which a training picture is moved."""


def cifar10(data_dir: str | None = None) -> TaskSpec:
    """CIFAR-10 from the folder ``data_dir``, else from that in the environment variable ``ESPER_DATA``.

    Raises ``DataError`` when no folder is given or it holds none of the forms of CIFAR-10.
    """
    folder = data_dir or os.environ.get(VARIABLE)
    if not folder:
        raise DataError(
            f"cifar10 needs files that you bring: give their folder as the option data_dir or in {VARIABLE}; "
            "it must hold cifar-10-binary.tar.gz or another of the forms in docs/data.md"
        )
    return task_of(load_cifar10(Path(folder), Expected()))


def task_of(data: Data) -> TaskSpec:
    """The task on pictures that are loaded already."""
    mean, std = channel_statistics(data.train.inputs)
    return TaskSpec(
        name="cifar10",
        description="CIFAR-10 from your own files, small convolutional host",
        metric=accuracy_metric(chance=10.0),
        host=partial(ConvHost, classes=10, channels=16, mean=mean, std=std),
        sites={f"block{i}": f"block{i}" for i in range(3)},
        blueprints=("norm", "pointwise", "depthwise3", "bottleneck", "conv3", "conv5", "conv3x2", "squeeze_excite"),
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=30, batch_size=128, lr=1e-2, weight_decay=0.05, max_seeds=3),
        augment=shift_and_mirror,
    )


def load_cifar10(folder: Path, expected: Expected) -> Data:
    """Inputs uint8 ``[N, 3, 32, 32]``, targets int64 ``[N]``. Validation is the last tenth of a stratified shuffle of
    the training pictures, test the published one.
    """
    found = read(folder, expected)
    order = torch.from_numpy(stratified_order(found.train.labels, seed=0))
    held_back = max(1, int(len(order) * HELD_BACK))
    whole = Split(torch.tensor(found.train.pictures), torch.from_numpy(found.train.labels))
    test = Split(torch.tensor(found.test.pictures), torch.from_numpy(found.test.labels))
    return Data.of(whole.take(order[:-held_back]), whole.take(order[-held_back:]), test, source=found.source)


def shift_and_mirror(pictures: Tensor, generator: Generator) -> Tensor:
    """Move each picture ``[N, C, H, W]`` by up to 4 pixels either way, filling in black, and mirror half of them."""
    count, _, height, width = pictures.shape

    def places(extent: int) -> Tensor:
        start = torch.randint(2 * SHIFT + 1, (count, 1), generator=generator)
        return (start + torch.arange(extent)).to(pictures.device)

    rows, columns = places(height), places(width)
    mirrored = torch.rand(count, 1, generator=generator).to(pictures.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(pictures, (SHIFT, SHIFT, SHIFT, SHIFT))
    which = torch.arange(count, device=pictures.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
