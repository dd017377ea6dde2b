"""Next-character prediction on the King James Bible, by a transformer that is too shallow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from esper.leyline import Metric, UsageError
from esper.tasks.base import Batch, Data, Split, Streams, TaskBudget, TaskSpec
from esper.tasks.bible import FOLDER, SOURCE, read_text
from esper.tasks.hosts import CharTransformer
from esper.tasks.pipeline import SeededSource
from esper.tasks.text import CHARACTERS, LENGTH, sequence_loss, sequences

BATCH: Final = 16
CHANNELS, HEADS, BLOCKS = 128, 4, 2
"""Of the host: 429,921 parameters; with a copy of each block 826,465."""
FOLDS: Final = 10
"""Of every so many chapters one is for validation and one for test."""


def book(steps: int = 20, validation: int = 96, test: int = 1024, data_dir: str = FOLDER) -> TaskSpec:
    """Characters of the King James Bible, in bits a character.

    Needs Debian's package ``bible-kjv``, whose text is in ``data_dir``. An epoch is ``steps`` batches of 16 sequences
    of 64 characters, drawn from all training chapters; ``validation`` and ``test`` are numbers of sequences.
    """
    for name, value in (("steps", steps), ("validation", validation), ("test", test)):
        if value < 1:
            raise UsageError(f"option {name} of task 'book' is {value}; it must be 1 or more")
    whole, data = load_book(steps, validation, test, Path(data_dir))
    return TaskSpec(
        name="book",
        description="next character of the King James Bible, a transformer of two blocks",
        metric=Metric("loss", "bits a character", higher_is_better=False, chance=_unigram(whole, data.validation)),
        host=partial(CharTransformer, CHARACTERS, LENGTH, CHANNELS, HEADS, BLOCKS, hidden=4 * CHANNELS),
        sites={f"block{i}": f"blocks.{i}" for i in range(BLOCKS)},
        blueprints=("clone",),
        loss=sequence_loss,
        score=bits,
        data=data,
        budget=TaskBudget(
            max_epochs=20,
            batch_size=BATCH,
            lr=1e-3,
            seed_lr_multiplier=1.0,
            max_seeds=BLOCKS,
            schedule="wsd",
            warmup=1.0,
        ),
        feed=lambda batch_size, streams: Draws(whole, steps, batch_size, streams),
    )


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in bits per sequence: ``[N, T, K]``, int64 ``[N, T]`` -> ``[N]``."""
    return sequence_loss(logits, targets) / math.log(2)


class Draws(SeededSource):
    """An epoch is a few batches, drawn anew from all of a split without replacement."""

    def __init__(self, split: Split, steps: int, batch_size: int, streams: Streams) -> None:
        super().__init__(batch_size, streams)
        if steps * batch_size > len(split):
            raise UsageError(f"{steps} batches of {batch_size} are more than the {len(split)} training sequences")
        self.split, self.steps = split, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch."""
        order = torch.randperm(len(self.split), generator=self._streams["order"])
        for rows in torch.split(order[: self.steps * self.batch_size], self.batch_size):
            taken = self.split.take(rows)
            yield taken.inputs, taken.targets


def load_book(steps: int, validation: int, test: int, folder: Path) -> tuple[Split, Data]:
    """All training sequences, and data whose training split holds as many of them as an epoch has.

    Inputs int64 ``[N, 64]``, targets the same one character later. No chapter is in two splits.
    """
    lines = [line.split(" ", 1) for line in read_text(folder, "book").splitlines()]
    chapters = [[text for _, text in verses] for _, verses in groupby(lines, lambda line: _chapter(line[0]))]
    parts = {
        name: ["\n".join(chapter) for number, chapter in enumerate(chapters) if number % FOLDS in folds]
        for name, folds in (("train", range(FOLDS - 2)), ("validation", [FOLDS - 2]), ("test", [FOLDS - 1]))
    }
    splits = {name: sequences("\n\n".join(part)) for name, part in parts.items()}
    sizes = {"train": steps * BATCH, "validation": validation, "test": test}
    train, val, held_out = (_spread(name, splits[name], sizes[name]) for name in splits)
    return splits["train"], Data.of(train, val, held_out, source=SOURCE)


def _chapter(place: str) -> str:
    """Book and chapter of ``1Sa2:10``."""
    found = re.fullmatch(r"(.+):\d+", place)
    assert found is not None
    return found[1]


def _spread(name: str, split: Split, size: int) -> Split:
    """So many of the sequences, evenly spaced."""
    if size > len(split):
        raise UsageError(f"task book: {size} sequences for {name}; legal: 1 to {len(split)}")
    return split.take(torch.linspace(0, len(split) - 1, size).long())


def _unigram(train: Split, validation: Split) -> float:
    """Bits a character of a guess by how often each comes in training."""
    counts = torch.bincount(train.targets.flatten(), minlength=CHARACTERS).double() + 1.0
    return float(-(counts / counts.sum()).log2()[validation.targets].mean())
