"""A task whose epochs take milliseconds: two clouds of points, a linear host with two slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.leyline import Metric
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec


def _accuracy(output: Tensor, targets: Tensor) -> Tensor:
    return 100.0 * (output.argmax(1) == targets).float()


def _loss(output: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, targets, reduction="none")


def _split(generator: torch.Generator, size: int) -> Split:
    inputs = torch.randn(size, 4, generator=generator)
    return Split(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())


class _Host(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))


def tiny(max_epochs: int = 6, examples: int = 64) -> TaskSpec:
    """Whether two numbers have one sign: chance for the host alone, easy for an MLP. ``examples`` per split."""
    generator = torch.Generator().manual_seed(0)
    train, validation, test = (_split(generator, size) for size in (examples,) * 3)
    return TaskSpec(
        name="tiny",
        description="sign of a product",
        metric=Metric("accuracy", "%", chance=50.0),
        host=_Host,
        sites={"first": "0", "second": "1"},
        blueprints=("norm", "lora", "mlp"),
        loss=_loss,
        score=_accuracy,
        data=Data.of(train, validation, test, source="drawn"),
        budget=TaskBudget(max_epochs=max_epochs, batch_size=64, lr=1e-2, max_seeds=2),
    )
