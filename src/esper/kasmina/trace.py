"""One observed forward pass: which modules were called in which order, and what became of what they gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from esper.kasmina.precision import Autocast
from esper.kasmina.structure import tensors, version
from esper.kasmina.trial import device_of


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module, the call around it, and its place in the order of returns (``None``: it did not)."""

    module: nn.Module
    parent: Call | None
    versions: tuple[int, ...] = ()
    """Version counters of the tensors that a watched module was called with."""
    returned: int | None = None


@dataclass
class Given:
    """What one call of a watched module gave, and what it was made from and used for."""

    output: Any
    versions: tuple[int, ...]
    """Version counters of its tensors when it was given."""
    autocast: Autocast
    makers: list[nn.Module]
    """Modules that had returned by then, the latest first."""
    takers: list[nn.Module] = field(default_factory=list)
    """Modules that were then called with one of its tensors."""
    inputs: Any = ((), {})
    """Positional and keyword arguments of the call."""
    input_written: bool = False
    """Whether the call wrote one of their tensors in place."""

    def written(self) -> bool:
        """Whether one of its tensors was written in place since."""
        return _versions(self.output) != self.versions


def _versions(value: Any) -> tuple[int, ...]:
    return tuple(version(tensor) for _, tensor in tensors(value))


@dataclass
class Trace:
    """The calls of one pass in the order of entry, and what the watched modules gave."""

    calls: list[Call] = field(default_factory=list)
    given: dict[nn.Module, list[Given]] = field(default_factory=dict)
    """Call by call."""

    def count(self, module: nn.Module) -> int:
        """How often ``module`` returned."""
        return sum(call.module is module and call.returned is not None for call in self.calls)

    def order(self, module: nn.Module) -> int:
        """Place of the module's first return among all returns."""
        return next(call.returned for call in self.calls if call.module is module and call.returned is not None)

    def completed_before(self, module: nn.Module) -> tuple[tuple[nn.Module, int], ...]:
        """The maximal modules that had returned when ``module`` (included) did, with the number of their calls."""
        end = self.order(module)

        def done(call: Call | None) -> bool:
            return call is not None and call.returned is not None and call.returned <= end

        counts: dict[nn.Module, int] = {}
        for call in self.calls:
            if done(call) and not done(call.parent):
                counts[call.module] = counts.get(call.module, 0) + 1
        return tuple(counts.items())


@contextmanager
def observed(host: nn.Module, watched: Iterable[nn.Module]) -> Iterator[Trace]:
    """Follow every call inside ``host`` with hooks that are gone afterwards."""
    trace = Trace()
    watch, device = set(watched), device_of(host)
    pending: list[Call] = []
    returned: list[Call] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        call = Call(module, pending[-1] if pending else None, _versions((args, kwargs)) if module in watch else ())
        trace.calls.append(call)
        pending.append(call)
        taken = {id(tensor) for _, tensor in tensors((args, kwargs))}
        for given in (each for calls in trace.given.values() for each in calls):
            if any(id(tensor) in taken for _, tensor in tensors(given.output)):
                given.takers.append(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while pending[-1].module is not module:  # calls that an exception ended, and the host went on
            pending.pop()
        call = pending.pop()
        call.returned = len(returned)
        returned.append(call)
        if module in watch:
            makers = [each.module for each in reversed(returned)]
            written = _versions((args, kwargs)) != call.versions
            given = Given(output, _versions(output), Autocast.now(device), makers, [], (args, kwargs), written)
            trace.given.setdefault(module, []).append(given)

    with ExitStack() as stack:
        for module in host.modules():
            stack.enter_context(removed(module.register_forward_pre_hook(enter, with_kwargs=True)))
            stack.enter_context(removed(module.register_forward_hook(leave, with_kwargs=True)))
        yield trace


@contextmanager
def removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Take the hook off again at the end."""
    try:
        yield
    finally:
        handle.remove()
