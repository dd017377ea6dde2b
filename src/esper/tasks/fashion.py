"""Clothes on a host that learns from scratch: a residual network that is too narrow, or a vision transformer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from esper.leyline import DataError, UsageError, unknown
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.clothes import CLASSES, FOLDER, SIDE, read_clothes
from esper.tasks.colour import channel_statistics
from esper.tasks.hosts import PatchTransformer, ResidualHost
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tasks.sources import cut, stratified_order

VALIDATION: Final = 1000
HOSTS: Final = ("resnet", "vit")


def fashion(
    train: int = 4000, test: int = 2000, host: str = "resnet", blocks: int = 1, split: int = 0, data_dir: str = FOLDER
) -> TaskSpec:
    """Fashion-MNIST from scratch.

    Needs the pictures (Debian's package ``dataset-fashion-mnist``) in ``data_dir``. ``host`` is ``resnet`` (three
    stages of 4, 8 and 16 channels with ``blocks`` blocks each, 6 ``blocks`` + 2 layers) or ``vit`` (49 patches, 32
    channels, ``blocks`` + 1 blocks). ``train`` and ``test`` are numbers of examples, ``split`` draws which.
    """
    if host not in HOSTS:
        raise unknown("host of task 'fashion'", host, HOSTS)
    if blocks < 1:
        raise UsageError(f"option blocks of task 'fashion' is {blocks}; it must be 1 or more")
    data = load_fashion(train, test, split, Path(data_dir))
    mean, std = channel_statistics(data.train.inputs)
    made: type[nn.Module]
    if host == "resnet":
        made, shape = ResidualHost, {"channels": 4, "blocks": blocks}
        sites = {f"stage{i}": f"stage{i}" for i in range(3)}
        blueprints = ("norm", "pointwise", "depthwise3", "conv3", "conv5", "squeeze_excite")
    else:
        made, shape = PatchTransformer, {"size": SIDE, "patch": 4, "channels": 32, "blocks": blocks + 1}
        sites = {f"block{i}": f"blocks.{i}" for i in range(blocks + 1)}
        blueprints = ("norm", "pointwise", "lora", "mlp", "mlp_large", "attention_full")
    return TaskSpec(
        name="fashion",
        description=f"Fashion-MNIST, a small {'residual network' if host == 'resnet' else 'vision transformer'}",
        metric=accuracy_metric(chance=100.0 / CLASSES),
        host=partial(made, classes=CLASSES, mean=mean, std=std, **shape),
        sites=sites,
        blueprints=blueprints,
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=10, batch_size=100, lr=1e-2 if host == "resnet" else 2e-3, max_seeds=2),
    )


def load_fashion(train: int, test: int, split: int, folder: Path) -> Data:
    """Inputs uint8 ``[N, 1, 28, 28]``, targets int64 ``[N]``. Validation is drawn from the published training part
    before training, so that fewer training examples leave it as it is; test is drawn from the published test part.
    """
    pictures, labels = read_clothes(folder, "fashion")
    tested, answers = read_clothes(folder, "fashion", "t10k")
    for name, count, legal in (("train", train, len(labels) - VALIDATION), ("test", test, len(answers))):
        if not 1 <= count <= legal:
            raise DataError(f"task fashion: {name} is {count} examples; legal: 1 to {legal}")
    validation, training = cut(stratified_order(labels, split), (VALIDATION, train))
    (held_out,) = cut(stratified_order(answers, split), (test,))
    return Data.of(
        _split(pictures, labels, training),
        _split(pictures, labels, validation),
        _split(tested, answers, held_out),
        source="Fashion-MNIST of Debian's dataset-fashion-mnist",
    )


def _split(pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> Split:
    return Split(torch.from_numpy(pictures[part]).unsqueeze(1), torch.from_numpy(labels[part]))
