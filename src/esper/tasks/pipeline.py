"""Training batches: shuffled, augmented, and at the same place again after a resume.

Data that fit in memory are gathered once an epoch and handed out as views; no loader processes, no Python per example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Generator, Tensor

from esper.leyline import DataError, UsageError
from esper.tasks.base import Augment, Batch, BatchSource, Split, Streams, TaskSpec

STREAMS: Final = ("order", "augment")


class SeededSource:
    """Random streams and their state, shared by the sources that shuffle."""

    def __init__(self, batch_size: int, streams: int | Streams) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}; it must be 1 or more")
        self.batch_size = batch_size
        self._streams = seeded_streams(streams) if isinstance(streams, int) else streams

    def state(self) -> dict[str, Tensor]:
        """Where the random streams stand between two epochs: name -> uint8 tensor."""
        return {name: self._streams[name].get_state() for name in STREAMS}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo of :meth:`state`: the next epoch is the one that followed it. Raises ``DataError`` when one lacks."""
        missing = [name for name in STREAMS if name not in state]
        if missing:
            raise DataError(f"saved position of the batches lacks the random stream {missing[0]!r}")
        for name in STREAMS:
            self._streams[name].set_state(state[name])


def seeded_streams(seed: int) -> dict[str, Generator]:
    """Independent generators for order and augmentation."""
    streams = {name: Generator() for name in STREAMS}
    for offset, generator in enumerate(streams.values()):
        generator.manual_seed(len(streams) * seed + offset)
    return streams


class Batches(SeededSource):
    """Batches of a split in memory: one gather an epoch, then views of it. The last, smaller batch is kept.

    ``streams`` is a seed, or the generators ``order`` and ``augment`` to draw from. Draws are made on the CPU whatever
    the ``device``, so that the order is the same everywhere.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        streams: int | Streams = 0,
        *,
        shuffle: bool = True,
        augment: Augment | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(batch_size, streams)
        self.split = split if device is None else split.to(device)
        self.shuffle, self.augment = shuffle, augment

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch; every example once."""
        split = self.split
        if self.shuffle:
            order = torch.randperm(len(split), generator=self._streams["order"])
            split = split.take(order.to(split.inputs.device))
        pieces = (torch.split(part, self.batch_size) for part in (split.inputs, split.targets))
        for inputs, targets in zip(*pieces, strict=True):
            yield (inputs if self.augment is None else self.augment(inputs, self._streams["augment"])), targets


def training_batches(
    task: TaskSpec, batch_size: int, streams: int | Streams, device: torch.device | str | None = None
) -> BatchSource:
    """The task's own source of training batches, or :class:`Batches` of its training split."""
    if task.feed is None:
        return Batches(task.data.train, batch_size, streams, augment=task.augment, device=device)
    return task.feed(batch_size, seeded_streams(streams) if isinstance(streams, int) else streams)
