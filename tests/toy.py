"""A task so small that tests can train it: which quarter of a picture holds the bright spot."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import PointwiseHost2d
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy


class NoisyHost(PointwiseHost2d):
    """The pointwise host with batch normalisation and dropout, whose state and chance a seed must not disturb."""

    def __init__(self) -> None:
        super().__init__(size=8, classes=4)
        self.block0.append(nn.BatchNorm2d(8))
        self.block1.append(nn.Dropout(0.3))


def toy_task(host: type[nn.Module] | partial[nn.Module] = NoisyHost) -> TaskSpec:
    """160 pictures of 8x8, four classes."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(4, (160,), generator=generator)
    inputs = 0.3 * torch.randn(160, 1, 8, 8, generator=generator)
    for i, target in enumerate(targets.tolist()):
        inputs[i, 0, 2 + 4 * (target // 2), 2 + 4 * (target % 2)] += 3.0
    whole = Split(inputs, targets)
    parts = [whole.take(torch.arange(a, b)) for a, b in ((0, 96), (96, 128), (128, 160))]
    return TaskSpec(
        name="toy",
        description="a spot in a quarter",
        metric=accuracy_metric(25.0),
        host=host,
        sites={"block0": "block0", "block1": "block1"},
        blueprints=("norm", "conv3"),
        loss=cross_entropy,
        score=accuracy,
        data=Data.of(*parts, source="made here"),
        budget=TaskBudget(max_epochs=12, batch_size=32, lr=1e-2),
    )
