"""A user's own loader as a source of training batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor

from esper.leyline import DataError, UsageError
from esper.tasks.base import Batch, Split, require_finite


class LoaderBatches:
    """Batches of any iterable of ``(inputs, targets)`` that can be read again each epoch, such as a ``DataLoader``.

    In the first epoch every batch is checked: a pair, of equal length, without NaN or infinity. A loader without a
    length needs ``batches``, the number of them that make an epoch.

    A resume is exact when the loader draws its order from torch's global generator or from a ``torch.Generator`` in an
    attribute ``generator``; other chance of its own it must keep itself.
    """

    def __init__(
        self, loader: Iterable[Any], *, batches: int | None = None, device: torch.device | str | None = None
    ) -> None:
        if not isinstance(loader, Iterable):
            raise UsageError(f"training data are a {type(loader).__name__}; an iterable of (inputs, targets) is needed")
        if isinstance(loader, Iterator):
            raise UsageError(
                f"training data are a {type(loader).__name__}, which can be read only once; "
                "give the list or the DataLoader that it came from"
            )
        self.loader, self.device = loader, device
        self._endless = batches
        self._batches = _length(loader) if batches is None else batches
        if self._batches < 1:
            raise DataError("the loader holds no batch")
        self._checked = False

    def __len__(self) -> int:
        return self._batches

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch. Raises ``DataError`` naming the batch that is not fit to train on."""
        seen = 0
        # a loader with an end is read to it: some draw from their generator once more there
        for item in self.loader if self._endless is None else islice(self.loader, self._endless):
            batch = self._checked_pair(item, seen) if not self._checked else _pair(item, seen)
            yield batch if self.device is None else (batch[0].to(self.device), batch[1].to(self.device))
            seen += 1
        if seen != self._batches:
            raise DataError(f"the loader gave {seen:,} batches; {self._batches:,} were announced")
        self._checked = True

    def state(self) -> dict[str, Tensor]:
        """Where the loader's own generator stands; empty when it has none."""
        generator = getattr(self.loader, "generator", None)
        return {"loader": generator.get_state()} if isinstance(generator, Generator) else {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo of :meth:`state`. Raises ``DataError`` when this loader is of another kind than the saved one."""
        if set(state) != set(self.state()):
            raise DataError("the saved position is that of a loader with another kind of random generator")
        if state:
            self.loader.generator.set_state(state["loader"])  # type: ignore[attr-defined]

    def _checked_pair(self, item: Any, number: int) -> Batch:
        inputs, targets = _pair(item, number)
        try:
            Split(inputs, targets)
        except DataError as error:
            raise DataError(f"batch {number} of the loader: {error}") from error
        require_finite(f"batch {number} of the loader, inputs", inputs)
        require_finite(f"batch {number} of the loader, targets", targets)
        return inputs, targets


def gather(loader: Iterable[Any]) -> Split:
    """All batches of a loader as one split in memory that knows them, for validation and test. Checked as in
    training.
    """
    batches = [_pair(item, number) for number, item in enumerate(loader)]
    if not batches:
        raise DataError("the loader holds no batch")
    try:
        inputs, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    except RuntimeError as error:
        raise DataError(f"the loader's batches do not fit together: {error}") from error
    split = Split(inputs, targets, tuple(len(batch[1]) for batch in batches))
    require_finite("inputs of the loader", inputs)
    require_finite("targets of the loader", targets)
    return split


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError as error:
        raise UsageError(
            f"the loader ({type(loader).__name__}) has no length; say how many batches make an epoch"
        ) from error


def _pair(item: Any, number: int) -> Batch:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"batch {number} of the loader is a {type(item).__name__}; a pair (inputs, targets) is needed")
    try:
        return torch.as_tensor(item[0]), torch.as_tensor(item[1])
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(part).__name__ for part in item)
        raise DataError(
            f"batch {number} of the loader is ({kinds}) and cannot be made tensors: {error}; inputs and targets are "
            "one tensor each: pack several into one, and unpack them in forward="
        ) from error
