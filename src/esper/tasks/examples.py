"""A task that is not classification, as an example to write your own by: regression, where lower is better."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import torch

from esper.leyline import Metric
from esper.tasks.base import Data, PerExample, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import TabularHost
from esper.tasks.sources import cut, package_file, read_table

SIZES: Final = (282, 80, 80)


def diabetes() -> TaskSpec:
    """Progression of diabetes after a year from ten measurements of 442 patients (Efron et al., 2004).

    The host is trained on standardised targets and scored by the mean absolute error in the study's own points.
    """
    data, scale = load_diabetes()
    train, validation = data.train.targets, data.validation.targets
    chance = scale * float((validation - train.median()).abs().mean())
    return TaskSpec(
        name="diabetes",
        description="disease progression from ten measurements; regression",
        metric=Metric("mean absolute error", "points", higher_is_better=False, chance=chance),
        host=partial(TabularHost, columns=10),
        sites={"block0": "block0", "block1": "block1"},
        blueprints=("norm", "pointwise", "lora", "bottleneck", "mlp"),
        loss=lambda prediction, target: (prediction - target).square(),
        score=_absolute_error(scale),
        data=data,
        budget=TaskBudget(max_epochs=40, batch_size=32, lr=5e-3, max_seeds=2),
    )


def load_diabetes() -> tuple[Data, float]:
    """Inputs float32 ``[N, 10]`` and targets float32 ``[N]``, each column standardised over training; and the points
    that one unit of a target stands for.
    """
    columns = read_table(package_file("sklearn", "datasets/data/diabetes_data_raw.csv.gz"), delimiter=" ")
    points = read_table(package_file("sklearn", "datasets/data/diabetes_target.csv.gz"))[:, 0]
    order = np.random.RandomState(0).permutation(len(points))
    parts = cut(order, SIZES)
    rows = (columns - columns[parts[0]].mean(axis=0)) / columns[parts[0]].std(axis=0)
    scale = float(points[parts[0]].std())
    targets = (points - points[parts[0]].mean()) / scale
    train, validation, test = (
        Split(torch.from_numpy(rows[part]).float(), torch.from_numpy(targets[part]).float()) for part in parts
    )
    return Data.of(train, validation, test, source="scikit-learn diabetes (Efron et al., 2004)"), scale


def _absolute_error(scale: float) -> PerExample:
    return lambda prediction, target: scale * (prediction - target).abs()
