"""Envs of one topology trained as one computation, beside the same envs one after the other.

    uv run python benchmarks/stacks.py --rows 2 4 16 64

CPU time of epochs of 16 steps on one thread, A and B in turn in one process; medians of the pairs. The MLP has two
hidden layers of 64 units; `digits` is the built-in task, whose host is convolutions of one position.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.leyline import EnvSpec, Metric
from esper.tasks import get_task
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.setup import TrainerConfig, from_task
from esper.tolaria.stacking import FASTER, StackedEngine, measured_gain

PAIRS = 7


class Always(StackedEngine):
    """Stacks where it can, so that what it would not choose is measured too."""

    def _pays(self, members: Sequence[int]) -> bool:
        return True


def mlp() -> TaskSpec:
    """Whether two numbers have one sign."""
    dice = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        inputs = torch.randn(size, 16, generator=dice)
        return Split(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())

    def host() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets, reduction="none")

    def score(output: Tensor, targets: Tensor) -> Tensor:
        return 100.0 * (output.argmax(1) == targets).float()

    return TaskSpec(
        name="signs",
        description="sign of a product",
        metric=Metric("accuracy", "%", chance=50.0),
        host=host,
        sites={"first": "1", "second": "3"},
        blueprints=("norm", "mlp"),
        loss=loss,
        score=score,
        data=Data.of(split(1600), split(400), split(400), source="drawn"),
        budget=TaskBudget(max_epochs=1000, batch_size=100, lr=1e-2),
    )


def engine_of(kind: type[ModuleEngine], task: TaskSpec, rows: int) -> ModuleEngine:
    """A fresh one, an epoch old."""
    trainer = TrainerConfig(batch_size=max(1, len(task.data.train) // 16))
    engine = kind(task, from_task(task, trainer), EngineConfig(trainer), lambda event: None)
    engine.reset([EnvSpec(row, 0, row, 1000) for row in range(rows)])
    engine.train_epoch(range(rows))
    return engine


def measure(task: TaskSpec, rows: int) -> str:
    """A line of the table."""
    alone, stack = engine_of(ModuleEngine, task, rows), engine_of(Always, task, rows)
    ratios, took = [], []
    for _ in range(PAIRS):
        seconds = []
        for engine in (alone, stack):
            began = time.process_time()
            engine.train_epoch(range(rows))
            seconds.append(time.process_time() - began)
        ratios.append(seconds[0] / seconds[1])
        took.append(1000 * seconds[1])
    gain = measured_gain([stack.trainer(row) for row in range(rows)])
    chosen = "yes" if gain >= FASTER else "no"
    faster, epoch = statistics.median(ratios), statistics.median(took)
    return f"{task.name:<8} {rows:>4} {faster:9.2f} {epoch:19.1f} {gain:13.2f}  {chosen}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 16, 64])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("host     envs  x faster  ms a stack's epoch  by its trial  chosen")
    for task in (mlp(), get_task("digits")):
        for rows in given.rows:
            print(measure(task, rows), flush=True)
    print("load of the machine, 1 / 5 / 15 minutes: " + " / ".join(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
