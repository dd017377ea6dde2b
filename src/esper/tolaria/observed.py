"""A step of somebody else's loop, run for its loss, and run again for seeds that learn behind the host.

The step of a training framework makes its own inputs, outputs and loss, and does more: it draws, logs, counts, and may
write what it was given. Run again, it gets the same batch and the same chance, and what it draws is not drawn.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

from esper.kasmina.structure import mapped, tensors, version
from esper.tasks.chance import load_process, process_state

Quiet = Callable[[], AbstractContextManager[Any]]
"""Within what it makes, a step leaves no trace in what is its framework's: logs, counters, metrics."""


class ObservedStep:
    """A framework makes the step once. ``compute(batch)``, called by :meth:`again` alone, gives the step's loss."""

    def __init__(self, compute: Callable[[Any], Any], batch: Any, quiet: Quiet = nullcontext) -> None:
        self.compute, self.batch, self.quiet = compute, batch, quiet
        self._chance: dict[str, Any] = {}
        self._written = False
        self._as_given: Any = None
        self._copy: Any = None
        self._versions: list[tuple[Tensor, int]] = []

    def keep(self) -> None:
        """The step is about to be made for the first time, and will be made again."""
        self._chance = process_state()
        self._versions = [(tensor, version(tensor)) for _, tensor in tensors(self.batch)]
        self._as_given = mapped(self.batch, _itself)
        self._copy = mapped(self.batch, torch.clone)

    def kept(self) -> None:
        """The step has been made for the first time. A copy of the batch is kept on where the step has written it."""
        self._written = any(version(tensor) != seen for tensor, seen in self._versions)
        if not self._written:
            self._copy = self._as_given

    def again(self) -> Any:
        """What the step gives, made again on the same batch and chance; streams of chance are then as before."""
        now = process_state()
        load_process(self._chance)
        try:
            with self.quiet():
                return self.compute(mapped(self._copy, torch.clone if self._written else _itself))
        finally:
            load_process(now)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


_CONTAINERS: Final = (list, dict, set, deque, defaultdict, OrderedDict)


@contextmanager
def attributes_kept(owners: Iterable[Any]) -> Iterator[None]:
    """Afterwards the attributes of ``owners`` are as before, and what is in them: lists, dictionaries, sets, tensors.

    Objects of other kinds are not looked into.
    """
    held: dict[int, tuple[Any, Any]] = {}
    for owner in owners:
        _hold(vars(owner), held)
    try:
        yield
    finally:
        with torch.no_grad():
            for value, before in held.values():
                _put_back(value, before)


def _hold(value: Any, held: dict[int, tuple[Any, Any]]) -> None:
    if id(value) in held:
        return
    if isinstance(value, Tensor):
        if not isinstance(value, torch.nn.Parameter):
            held[id(value)] = value, (version(value), value.detach().clone())
    elif type(value) in _CONTAINERS:
        held[id(value)] = value, value.copy()
        for item in value.values() if isinstance(value, dict) else value:
            _hold(item, held)


def _put_back(value: Any, before: Any) -> None:
    if isinstance(value, Tensor):
        seen, copy = before
        if version(value) != seen:
            value.detach().copy_(copy)
    else:
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(before)
