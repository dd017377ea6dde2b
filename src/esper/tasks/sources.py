"""Finding the data files that installed packages carry, and splitting them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.leyline import DataError, MissingExtraError


def package_file(package: str, path: str, *, extra: str | None = None, how: str | None = None) -> Path:
    """Path of a file inside an installed package, found without importing the package.

    Raises ``MissingExtraError`` when the package is absent and ``extra`` installs it, ``DataError`` where no extra does
    (``how`` says what does) and when the package is there but the file is not.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        if extra is not None:
            raise MissingExtraError(f"data from the package {package}", extra)
        told = "" if how is None else f": {how}"
        raise DataError(f"package {package} is not installed; its file {path} is needed{told}")
    file = Path(spec.submodule_search_locations[0], path)
    if not file.is_file():
        raise DataError(f"package {package} is installed but carries no {path}; another version may")
    return file


def read_table(path: Path, delimiter: str = ",") -> npt.NDArray[np.float64]:
    """Numbers of a gzipped text table without header, ``[rows, columns]``. Raises ``DataError`` when it is damaged."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            return np.loadtxt(lines, delimiter=delimiter, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a readable table of numbers: {error}") from error


def frozen_stream(seed: int) -> np.random.RandomState:
    """The stream of a split. Raises ``DataError`` for a number that draws none."""
    if not 0 <= seed < 2**32:
        raise DataError(f"the number of a split is {seed}; legal: 0 to {2**32 - 1}")
    # RandomState's streams are frozen for ever, Generator's are not, and the splits must never move.
    return np.random.RandomState(seed)


def stratified_order(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A shuffled order in which every stretch holds the classes in their overall proportions.

    Example ``k`` of ``n`` in its class is put at ``(k + 1/2) / n`` of the whole.
    """
    shuffled = frozen_stream(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def cut(order: npt.NDArray[np.int64], sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Consecutive pieces of ``order``. Raises ``DataError`` when it is too short."""
    if sum(sizes) > len(order):
        raise DataError(f"splits of {' + '.join(map(str, sizes))} examples asked of {len(order):,}")
    return np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])


def normalised(values: Tensor, train: Tensor) -> Tensor:
    """``values`` minus mean, over standard deviation of ``train``, as float32.

    Both hold integers (as float64), whose sums are exact, so that the result has the same bits on every machine.
    """
    count, total, squares = train.numel(), train.sum(), train.square().sum()
    mean = total / count
    return ((values - mean) / torch.sqrt(squares / count - mean.square())).to(torch.float32)
