"""Where a slot meets the host: the hook on its site, and stand-ins for a module's forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from esper.kasmina.checkpointing import computed_anew
from esper.kasmina.compiled import forget_graphs
from esper.kasmina.copies import Twin
from esper.kasmina.generations import Part
from esper.kasmina.probe import Place
from esper.kasmina.slot import SeedSlot

Forward = Callable[..., Any]

KEEPS: Final = "keeps"
"""Attribute of a stand-in that keeps what the module gives: the function that it tells."""


class Tap:
    """Forward hook that passes a module's output through a slot. With no seed it costs one look at an attribute.

    ``alpha`` replaces the slot's own; ``muted`` lets the output by; ``listener`` is told what the slot made of it. The
    seed is in the mode of ``host``, the whole one, unless ``training`` says otherwise: its site may be held in
    evaluation mode, and the seed learns.
    """

    def __init__(self, slot: SeedSlot, place: Place, host: nn.Module) -> None:
        self.slot = slot
        self.place = place
        self.host = host
        self.training: bool | None = None
        self.alpha: float | None = None
        self.muted = False
        self.listener: Callable[[Any], None] | None = None

    @property
    def parts(self) -> list[Part]:
        """Every seed of the slot."""
        return self.slot.parts()

    def __deepcopy__(self, memo: dict[int, Any]) -> Twin:
        return Twin.of(self, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return Twin, (self.parts, self.place)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output with the slot's tensor in place of the host's; ``None`` where nothing changes."""
        if self.slot.bare or self.muted:
            return None
        self.set_mode()
        h = self.place.take(output)
        grown = self.slot(h, self.alpha, self.place.entering(args, kwargs), (args, kwargs))
        if grown is h:
            return None
        changed = self.place.give(output, grown)
        if self.listener is not None:
            self.listener(changed)
        return changed

    def set_mode(self) -> None:
        """Put the seed in the mode that a pass is made in; what is computed anew is computed as it was before."""
        training = self.host.training if self.training is None else self.training
        if self.slot.training is not training and (torch.compiler.is_dynamo_compiling() or not computed_anew()):
            self.slot.train(training)

    def attach(self, module: nn.Module) -> None:
        """Attach as a forward hook, once and for all."""
        module.register_forward_hook(self, with_kwargs=True)
        forget_graphs()

    def attach_inside(self, module: nn.Module) -> None:
        """Attach behind the module's own ``forward``, for modules that compute otherwise when they have hooks."""
        self.detach(module)
        module.__dict__["forward"] = Inside(module.forward, self, module)
        forget_graphs()

    def detach(self, module: nn.Module) -> None:
        """Leave the module as it was."""
        for key, hook in list(module._forward_hooks.items()):
            if hook is self:
                del module._forward_hooks[key]
                del module._forward_hooks_with_kwargs[key]
        if isinstance(module.__dict__.get("forward"), Inside):
            del module.__dict__["forward"]
        forget_graphs()


class Inside:
    """A module's ``forward`` with a tap behind it."""

    def __init__(self, inner: Forward, tap: Tap | Twin, module: nn.Module) -> None:
        self.inner = inner
        self.tap = tap
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives, tapped."""
        output = self.inner(*args, **kwargs)
        changed = self.tap(self.module, args, kwargs, output)
        return output if changed is None else changed


def tap_of(module: nn.Module) -> Tap | Twin | None:
    """The tap on ``module``, or what stands for one in a copy, if there is one."""
    inside = module.__dict__.get("forward")
    if isinstance(inside, Inside):
        return inside.tap
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, Tap | Twin)), None)


def untapped_forward(module: nn.Module) -> Forward:
    """The module's own ``forward``."""
    own = module.__dict__.get("forward")
    return own.inner if isinstance(own, Inside) else module.forward


@contextmanager
def substituted(stand_ins: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Each module computes by its stand-in; hooks and taps work on what that returns."""
    before = {module: module.__dict__.get("forward") for module in stand_ins}
    inner = {module: untapped_forward(module) for module in stand_ins}
    try:
        for module, stand_in in stand_ins.items():
            own = before[module]
            if isinstance(own, Inside):
                own.inner = stand_in
            else:
                module.__dict__["forward"] = stand_in
        yield
    finally:
        for module, own in before.items():
            if isinstance(own, Inside):
                own.inner = inner[module]
            elif own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own
