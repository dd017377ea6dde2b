"""Hosts that are worse off for something: they forget, or learn from labels that are all wrong."""

from __future__ import annotations

from dataclasses import replace

import tiny as tiny_task
import torch
from tiny import tiny
from torch import Tensor

from esper.tasks.base import Data, Split, TaskSpec


class _Forgetful(tiny_task._Host):
    """Answers ever more of what it is asked wrongly, from its 64th training batch on; training itself is honest."""

    batches = 0

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            inputs = torch.relu(layer(inputs))
        self.batches += self.training
        output = self[-1](inputs)
        forgotten = int(max(0, self.batches // 8 - 8) * 0.05 * (not self.training) * len(output))
        return torch.cat([-output[:forgotten], output[forgotten:]])


def forgetful(max_epochs: int = 14) -> TaskSpec:
    """Learns for eight epochs, and forgets in the ones after."""
    task = tiny(max_epochs)
    return replace(task, host=_Forgetful, budget=replace(task.budget, batch_size=8, lr=0.05))


def misled(max_epochs: int = 10) -> TaskSpec:
    """Trains on the opposite of what it is judged by, so whatever learns does harm."""
    task = tiny(max_epochs)
    parts = task.data.splits()
    wrong = Split(parts["train"].inputs, 1 - parts["train"].targets)
    data = Data.of(wrong, parts["validation"], parts["test"], source="drawn, with every training label turned round")
    return replace(task, data=data, budget=replace(task.budget, batch_size=8))
