"""Training data that do not fit in memory: read by chunks ahead of use, shuffled in a buffer of bounded size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from esper.leyline import DataError, UsageError
from esper.tasks.base import Augment, Batch, Split, Streams
from esper.tasks.pipeline import SeededSource
from esper.tasks.tree import require_finite


class Chunks(Protocol):
    """Examples in pieces that fit in memory. Pieces are read from a thread of their own, one at a time."""

    examples: int
    """In all pieces together."""

    def __len__(self) -> int:
        """Number of pieces."""

    def __getitem__(self, index: int) -> Split:
        """Read one piece."""


class MappedChunks:
    """Two ``.npy`` files, inputs ``[N, ...]`` and targets ``[N, ...]``, mapped and read ``chunk`` examples at a time.

    Raises ``DataError`` when a file is missing, not an array of numbers, or the lengths differ.
    """

    def __init__(self, inputs: str | Path, targets: str | Path, chunk: int = 4096) -> None:
        if chunk < 1:
            raise UsageError(f"chunk is {chunk} examples; it must be 1 or more")
        self.chunk = chunk
        self._inputs, self._targets = _mapped(inputs), _mapped(targets)
        if len(self._inputs) != len(self._targets) or len(self._inputs) == 0:
            raise DataError(
                f"{inputs} holds {len(self._inputs):,} examples and {targets} {len(self._targets):,}; "
                "one target per input and at least one example are needed"
            )
        self.examples = len(self._inputs)

    def __len__(self) -> int:
        return -(-self.examples // self.chunk)

    def __getitem__(self, index: int) -> Split:
        piece = slice(index * self.chunk, (index + 1) * self.chunk)
        return Split(torch.from_numpy(self._inputs[piece].copy()), torch.from_numpy(self._targets[piece].copy()))


def _mapped(path: str | Path) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy array of numbers: {error}") from error
    if array.ndim == 0:
        raise DataError(f"{path}: holds a single number; the first axis must count examples")
    return array


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How much is held in memory: the buffer, and ``ahead`` + 1 pieces."""

    buffer: int = 16384
    """Examples kept back for shuffling; the larger, the better mixed."""
    ahead: int = 2
    """Pieces read before they are needed."""

    def __post_init__(self) -> None:
        for name in ("buffer", "ahead"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")


class StreamingBatches(SeededSource):
    """Batches of examples that come in chunks; every example once an epoch, the last, smaller batch kept.

    When shuffling, pieces come in random order and pass through a buffer: batches are drawn from whatever the buffer
    and the newest piece hold together. The order depends on the streams alone, not on the reading thread's pace.
    """

    def __init__(
        self,
        chunks: Chunks,
        batch_size: int,
        streams: int | Streams = 0,
        *,
        shuffle: bool = True,
        augment: Augment | None = None,
        device: torch.device | str | None = None,
        config: StreamConfig | None = None,
    ) -> None:
        super().__init__(batch_size, streams)
        self.chunks, self.shuffle, self.augment, self.device = chunks, shuffle, augment, device
        self.config = config or StreamConfig()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return -(-self.chunks.examples // self.batch_size)

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch. Raises ``DataError`` when a piece is damaged or the pieces do not add up."""
        pool: Split | None = None
        seen = 0
        kept_back = self.config.buffer if self.shuffle else 0
        for chunk in self._read_ahead(self._order(len(self.chunks))):
            seen += len(chunk)
            pool = chunk if pool is None else _joined(pool, chunk)
            ready = max(0, len(pool) - kept_back) // self.batch_size * self.batch_size
            if ready:
                pool = self._mixed(pool)
                yield from self._batches(Split(pool.inputs[:ready], pool.targets[:ready]))
                pool = Split(pool.inputs[ready:], pool.targets[ready:]) if ready < len(pool) else None
        if seen != self.chunks.examples:
            raise DataError(f"the pieces hold {seen:,} examples together; {self.chunks.examples:,} were announced")
        if pool is not None:
            yield from self._batches(self._mixed(pool))

    def _order(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._streams["order"]) if self.shuffle else torch.arange(count)

    def _mixed(self, pool: Split) -> Split:
        return pool.take(self._order(len(pool))) if self.shuffle else pool

    def _batches(self, split: Split) -> Iterator[Batch]:
        pieces = (torch.split(part, self.batch_size) for part in (split.inputs, split.targets))
        for inputs, targets in zip(*pieces, strict=True):
            if self.device is not None:
                inputs, targets = inputs.to(self.device), targets.to(self.device)
            yield (inputs if self.augment is None else self.augment(inputs, self._streams["augment"])), targets

    def _read_ahead(self, order: torch.Tensor) -> Iterator[Split]:
        reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-input")
        pending: deque[Future[Split]] = deque()
        try:
            for index in order.tolist():
                pending.append(reader.submit(self._read, index))
                if len(pending) > self.config.ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def _read(self, index: int) -> Split:
        split = self.chunks[index]
        if index not in self._checked:
            require_finite(f"piece {index} inputs", split.inputs)
            require_finite(f"piece {index} targets", split.targets)
            self._checked.add(index)
        return split


def _joined(first: Split, second: Split) -> Split:
    try:
        return Split(torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]))
    except RuntimeError as error:
        raise DataError(f"two pieces of training data differ in the shape of an example: {error}") from error
