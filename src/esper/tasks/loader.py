"""A user's own loaders: a source of training batches, and splits that are read again at every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from esper.leyline import DataError, UsageError
from esper.tasks.base import Batch, CountedBatch
from esper.tasks.chance import process_kept
from esper.tasks.facts import TargetFacts
from esper.tasks.tree import count, moved, part, require_finite, tensored

Unpack = Callable[[Any], tuple[Any, Any]]
"""``batch of a loader -> (inputs, targets)``"""


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How a batch of a loader becomes a pair ``(inputs, targets)``.

    By ``unpack`` where it is given. Where the model computes its ``own_loss`` the whole batch is its input, and the
    targets that a metric sees are what it holds under ``labels``, else all of it. Otherwise it is a pair already.
    """

    unpack: Unpack | None = None
    own_loss: bool = False

    def __call__(self, item: Any, where: str) -> Batch:
        """Inputs and targets of ``item``, which is ``where``. Raises ``DataError`` with how to say which is which."""
        if self.unpack is not None:
            pair = self._unpacked(item, where)
        elif self.own_loss:
            labels = item.get("labels") if isinstance(item, Mapping) else None
            pair = item, item if labels is None else labels
        elif isinstance(item, tuple | list) and len(item) == 2:
            pair = item[0], item[1]
        else:
            raise DataError(f"{where} is {_described(item)}; a pair (inputs, targets) is needed: {_advice(item)}")
        return tensored(pair[0]), tensored(pair[1])

    def _unpacked(self, item: Any, where: str) -> Batch:
        assert self.unpack is not None
        try:
            pair = self.unpack(item)
        except Exception as error:  # a user's function may raise anything
            raise DataError(f"unpack fails on {where}, {_described(item)}: {type(error).__name__}: {error}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"unpack gives {_described(pair)} for {where}; a pair (inputs, targets) is needed")
        return pair[0], pair[1]


def _described(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} of {', '.join(map(str, item))}"
    return f"a {type(item).__name__}" + (f" of {len(item)} parts" if isinstance(item, tuple | list) else "")


def _advice(item: Any) -> str:
    if isinstance(item, Mapping):
        key = next((key for key in ("labels", "label", "targets", "target", "y") if key in item), "...")
        return (
            f"unpack=lambda batch: (batch, batch[{key!r}]) with a loss of yours, or loss=None for the loss that the "
            "model itself computes"
        )
    if isinstance(item, tuple | list) and len(item) > 2:
        return "unpack=lambda batch: ((batch[0], batch[1]), batch[2]), say"
    return "unpack=lambda batch: (inputs, targets) tells how to take it apart"


class LoaderBatches:
    """Batches of any iterable that can be read again each epoch, such as a ``DataLoader``.

    In the first epoch every batch is checked: it has examples, as many inputs as targets where they can be counted, and
    neither NaN nor infinity. A loader without a length needs ``batches``, how many make an epoch; the next epoch goes
    on where that one ended, and at the loader's end it begins anew.

    A resume is exact when the loader draws its order from torch's global generator or from a ``torch.Generator`` in an
    attribute ``generator``; other chance of its own it must keep itself.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        batches: int | None = None,
        device: torch.device | str | None = None,
        unpacking: Unpacking | None = None,
    ) -> None:
        _check_iterable("training data", loader)
        self.loader, self.device, self.unpacking = loader, device, unpacking or Unpacking()
        self._endless = batches is not None
        self._batches = _length(loader) if batches is None else batches
        if self._batches < 1:
            raise DataError("the loader holds no batch")
        self._checked = False
        self._pass: Iterator[Any] | None = None
        """The reading under way, of a loader whose epochs end elsewhere than itself."""
        self._begun: dict[str, Tensor] = {}
        """Where the random streams stood when it began."""
        self._drawn = 0
        self._passes = 0
        """Begun so far."""

    def __len__(self) -> int:
        return self._batches

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch. Raises ``DataError`` naming the batch that is not fit to train on."""
        seen = 0
        if not self._endless:
            self._begin_pass()
        # a loader with an end is read to it: some draw from their generator once more there
        for item in self._going_on() if self._endless else self.loader:
            where = f"batch {seen} of the loader"
            inputs, targets = self.unpacking(item, where)
            if not self._checked:
                check_batch(where, inputs, targets)
            yield (
                (inputs, targets) if self.device is None else (moved(inputs, self.device), moved(targets, self.device))
            )
            seen += 1
        if seen != self._batches:
            raise DataError(f"the loader gave {seen:,} batches; {self._batches:,} were announced")
        self._checked = True

    def _going_on(self) -> Iterator[Any]:
        """As many batches as make an epoch, from where the last one ended."""
        for _ in range(self._batches):
            item = next(self._reading(), _END)
            if item is _END:
                if self._drawn == 0:
                    raise DataError("the loader gave no batch; a loader that can be read again is needed")
                self._pass = None
                item = next(self._reading(), _END)
                if item is _END:
                    raise DataError("the loader gave no batch when it was read again; it can be read only once")
            self._drawn += 1
            yield item

    def _reading(self) -> Iterator[Any]:
        if self._pass is None:
            self._begin_pass()
            self._begun = {"global": torch.get_rng_state(), **self._random()}
            self._pass, self._drawn = iter(self.loader), 0
        return self._pass

    def _begin_pass(self) -> None:
        """Tell samplers that ask for it (``DistributedSampler``) which pass it is: they shuffle by that."""
        if self._told is not None:
            self._told(self._passes)
        self._passes += 1

    @property
    def _told(self) -> Callable[[int], None] | None:
        return getattr(getattr(self.loader, "sampler", None), "set_epoch", None)

    def _random(self) -> dict[str, Tensor]:
        generator = getattr(self.loader, "generator", None)
        return {"loader": generator.get_state()} if isinstance(generator, Generator) else {}

    def state(self) -> dict[str, Tensor]:
        """Where the loader's own generator stands, if it has one, and how far a reading under way has come."""
        passes = {} if self._told is None else {"passes": torch.tensor(self._passes)}
        if self._pass is None:
            return {**self._random(), **passes}
        begun = {f"begun_{name}": tensor for name, tensor in self._begun.items()}
        return {**self._random(), **passes, **begun, "drawn": torch.tensor(self._drawn)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo of :meth:`state`; a reading that was under way is made once more up to where it was.

        Raises ``DataError`` when this loader is of another kind than the saved one.
        """
        begun = {name.removeprefix("begun_"): state[name] for name in state if name.startswith("begun_")}
        if ("loader" in state) != bool(self._random()) or (begun and not self._endless):
            raise DataError("the saved position is that of a loader with another kind of random generator")
        self._pass = None
        self._passes = int(state.get("passes", 0))
        if begun:
            self._passes -= 1  # it is begun again
            with process_kept(self.loader):
                torch.set_rng_state(begun["global"])
                self._set(begun)
                for _ in range(int(state["drawn"])):
                    next(self._reading(), None)
            self._begun, self._drawn = begun, int(state["drawn"])
        self._set(state)

    def _set(self, state: Mapping[str, Tensor]) -> None:
        if "loader" in state:
            self.loader.generator.set_state(state["loader"])  # type: ignore[attr-defined]


_END = object()


class LoadedSplit:
    """A split in a loader of the user's own: read again at every evaluation, in the user's own batches.

    The first reading, when it is made, checks every batch as in training, and finds out how many examples there are and
    what is known of the targets. Where the examples of a batch cannot be counted, every batch counts as one.

    Every reading sees the same random numbers, those of torch's global generator, of numpy's, of Python's and of the
    loader's attribute ``generator``, and leaves them as they were.

    Raises ``UsageError`` or ``DataError`` for what cannot be read, or only once.
    """

    def __init__(
        self,
        name: str,
        loader: Iterable[Any],
        unpacking: Unpacking,
        device: torch.device | str,
        ignored: int = -100,
    ) -> None:
        _check_iterable(f"{name} data", loader)
        self.name, self.loader, self.unpacking, self.device = name, loader, unpacking, device
        self.targets = TargetFacts(ignored)
        sizes = []
        with process_kept(loader):
            for number, item in enumerate(loader):
                where = f"batch {number} of {name}"
                inputs, targets = unpacking(item, where)
                sizes.append(check_batch(where, inputs, targets))
                self.targets.add(targets)
        if not sizes:
            raise DataError(f"the loader of {name} holds no batch")
        self.counted = None not in sizes
        """Whether the examples of every batch can be counted."""
        self.sizes = tuple(size or 1 for size in sizes) if self.counted else (1,) * len(sizes)
        """Examples of each batch in the first reading."""

    def __len__(self) -> int:
        return sum(self.sizes)

    def within(self, most: int | None) -> int | None:
        """What is asked for: batches are the loader's own."""
        return most

    def parts(self, most: int | None) -> int:
        """See :class:`esper.tasks.base.SplitSource`."""
        return len(self.sizes) if most is None or not self.counted else sum(-(-n // most) for n in self.sizes)

    @contextmanager
    def reading(self, most: int | None) -> Iterator[Iterator[CountedBatch]]:
        """See :class:`esper.tasks.base.SplitSource`; larger batches are divided. Raises ``DataError`` where it gives
        nothing any more."""
        with process_kept(self.loader):
            yield self._batches(most)

    def _batches(self, most: int | None) -> Iterator[CountedBatch]:
        number = -1
        for number, item in enumerate(self.loader):
            inputs, targets = (
                moved(each, self.device) for each in self.unpacking(item, f"batch {number} of {self.name}")
            )
            n = (count(inputs, targets) if self.counted else None) or 1
            if most is None or n <= most:
                yield inputs, targets, n
                continue
            for index in torch.split(torch.arange(n), most):
                yield part(inputs, index, n), part(targets, index, n), len(index)
        if number < 0:
            raise DataError(f"the loader of {self.name} gave no batch when it was read again; it can be read only once")


def check_batch(where: str, inputs: Any, targets: Any) -> int | None:
    """How many examples a batch holds, if that can be counted. Raises ``DataError`` where it is not fit to be used."""
    for name, tree in (("inputs", inputs), ("targets", targets)):
        require_finite(f"{where}, {name}", tree)
    found = count(inputs, targets)
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.ndim and targets.ndim and found is None:
        raise DataError(f"{where}: {len(inputs):,} inputs but {len(targets):,} targets; one target per input")
    if found == 0:
        raise DataError(f"{where} holds no example")
    return found


def _check_iterable(what: str, loader: Any) -> None:
    if not isinstance(loader, Iterable):
        raise UsageError(
            f"{what} are a {type(loader).__name__}; an iterable of batches is needed, such as a DataLoader"
        )
    if isinstance(loader, Iterator):
        raise UsageError(
            f"{what} are a {type(loader).__name__}, which can be read only once; "
            "give the list or the DataLoader that it came from"
        )


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError as error:
        raise UsageError(
            f"the loader ({type(loader).__name__}) has no length; say how many batches make an epoch: steps_per_epoch"
        ) from error
