"""Seeds among the parameters of the module that they grow in, for code that only knows that module.

``clip_grad_norm_(model.parameters())``, ``model.zero_grad()`` and their like ask a module for ``named_parameters``.
Children of a ``Sequential`` are called one after the other, so a seed cannot be one of them; what is asked is answered
instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from esper.kasmina.slot import SeedSlot


class Exposed:
    """Stands before a module's ``named_parameters`` and adds those of the seeds that grow inside."""

    def __init__(self, module: nn.Module, slots: Mapping[str, SeedSlot]) -> None:
        """``slots``: those on the module itself and inside it, by path."""
        self.module, self.slots = module, slots
        self.hidden = False

    def __call__(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As :meth:`torch.nn.Module.named_parameters`; a seed is named as in an export."""
        yield from own_parameters(self.module, prefix, recurse, remove_duplicate)
        if not recurse or self.hidden:
            return
        for path, slot in self.slots.items():
            for name, parameter in slot.named_parameters():
                yield ".".join(part for part in (prefix, path, name) if part), parameter

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module has a method of its own."""
        return getattr, (self.module, "named_parameters")


def own_parameters(module: nn.Module, *args: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """``named_parameters`` of the module, with no seed among them."""
    return type(module).named_parameters(module, *args)


@contextmanager
def exposed(host: nn.Module, slots: Mapping[str, SeedSlot]) -> Iterator[list[Exposed]]:
    """Within, ``parameters()`` of the host, and of every module around a slot, gives the live seeds too.

    ``slots``: path of the site -> slot. A module around the host does not know of it.
    """
    inside: dict[nn.Module, dict[str, SeedSlot]] = {}
    for path, slot in slots.items():
        parts = path.split(".")
        for depth in range(len(parts) + 1):
            around = host.get_submodule(".".join(parts[:depth]))
            inside.setdefault(around, {})[".".join(parts[depth:])] = slot
    answers = [Exposed(module, found) for module, found in inside.items()]
    try:
        for each in answers:
            each.module.__dict__["named_parameters"] = each
        yield answers
    finally:
        for module in inside:
            module.__dict__.pop("named_parameters", None)


@contextmanager
def hidden(answers: Iterable[Exposed]) -> Iterator[None]:
    """Within, a module's parameters are its own alone: a penalty on them in a second pass is no second penalty."""
    try:
        for each in answers:
            each.hidden = True
        yield
    finally:
        for each in answers:
            each.hidden = False
