"""Batches that all ranks draw alike, and each trains on its rows of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from esper.leyline import UsageError
from esper.tasks.base import Batch, BatchSource
from esper.tolaria.ranks import Ranks


def require_rows(rows: int, ranks: Ranks) -> None:
    """Raise ``UsageError`` where a batch of so many has none for some rank."""
    if rows < ranks.count:
        raise UsageError(
            f"a batch of {rows} has no example for some of {ranks.count} ranks; legal: a batch size by which the last "
            "batch of an epoch has one for each, or fewer ranks"
        )


class SharedBatches:
    """Of a source that is the same on every rank (order and augmentation, too), every ``count``-th row of each batch.

    Together the ranks train on the batches that one would train on alone.
    """

    def __init__(self, source: BatchSource, ranks: Ranks) -> None:
        self._source, self._ranks = source, ranks
        self.weight = 1.0
        """What the mean loss of the batch that was last given counts in the ranks' mean, so that this is the mean of
        all of its examples: not 1 where the ranks have more and fewer of them."""

    def __len__(self) -> int:
        return len(self._source)

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch. Raises ``UsageError`` for one that has no row for some rank."""
        ranks = self._ranks
        for inputs, targets in self._source.epoch():
            require_rows(len(inputs), ranks)
            mine = inputs[ranks.rank :: ranks.count]
            self.weight = len(mine) * ranks.count / len(inputs)
            yield mine, targets[ranks.rank :: ranks.count]

    def state(self) -> dict[str, Tensor]:
        """See :class:`BatchSource`."""
        return self._source.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`BatchSource`."""
        self._source.load(state)
