"""The default task: handwritten 8x8 digits on a host that cannot see shapes."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import torch

from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import PointwiseHost2d
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tasks.sources import cut, normalised, package_file, read_table, stratified_order

SIZES: Final = (1000, 397, 400)
"""Examples for training, validation and test."""


def load_digits() -> Data:
    """The 1,797 digits of scikit-learn in a fixed, stratified split: inputs float32 ``[N, 1, 8, 8]``, normalised by the
    training split alone; targets int64 ``[N]``.
    """
    # scikit-learn's own loader costs two seconds of imports
    table = read_table(package_file("sklearn", "datasets/data/digits.csv.gz"))
    labels = table[:, -1].astype(np.int64)
    parts = [torch.from_numpy(part) for part in cut(stratified_order(labels, seed=0), SIZES)]
    pixels, targets = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8), torch.from_numpy(labels)
    inputs = normalised(pixels, pixels[parts[0]])
    train, validation, test = (Split(inputs, targets).take(part) for part in parts)
    return Data.of(train, validation, test, source="scikit-learn digits (UCI Optdigits, test part)")


def digits() -> TaskSpec:
    """scikit-learn's digits. The host alone ends near 50 %, one good seed brings it to 90."""
    return TaskSpec(
        name="digits",
        description="8x8 handwritten digits, pointwise-convolution host",
        metric=accuracy_metric(chance=10.0),
        host=partial(PointwiseHost2d, size=8, classes=10),
        sites={f"block{i}": f"block{i}" for i in range(3)},
        blueprints=("norm", "pointwise", "depthwise3", "conv3", "conv5"),
        loss=cross_entropy,
        score=accuracy,
        data=load_digits(),
        budget=TaskBudget(max_epochs=30, batch_size=100, lr=5e-3, max_seeds=2),
    )
