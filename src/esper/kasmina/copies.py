"""Copies of a model that grows: what stands in them for a tap, and averages that follow what grows.

``deepcopy`` and ``pickle`` of a tapped host give networks of their own: what the host computes, with the seeds that it
has. A copy whose weights are averaged with the host's (``AveragedModel``) follows its seeds too: one that germinates
joins the average, one that is pruned leaves it, and alpha is the host's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import nn
from torch.optim.swa_utils import AveragedModel

from esper.kasmina.portable import added, blended

if TYPE_CHECKING:
    from esper.kasmina.generations import Part
    from esper.kasmina.probe import Place
    from esper.kasmina.tap import Tap


class Twin:
    """Forward hook in a copy, where the host has a tap: seeds of its own at fixed alphas, or none."""

    def __init__(self, parts: Sequence[Part], place: Place) -> None:
        self.parts, self.place = list(parts), place
        self.origin: ref[Tap] | None = None
        self.follows = False
        """Whether it belongs to an average."""

    @classmethod
    def of(cls, tap: Tap, memo: dict[int, Any]) -> Twin:
        """What stands for ``tap`` in the copy that ``memo`` belongs to."""
        twin = cls([copied(part, memo) for part in tap.parts], tap.place)
        twin.origin = ref(tap)
        return twin

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output with the seeds' part in it; ``None`` where nothing changes."""
        place, x, changed = self.place, self.place.entering(args, kwargs), None
        for part in self.parts:
            if part.alpha == 0.0:
                continue
            seed, before = part.seed, output if changed is None else changed
            weight = next(seed.parameters(), None)
            if weight is not None and weight.device != (h := place.take(before)).device:
                seed.to(h.device)
            if seed.training is not module.training:
                seed.train(module.training)
            if x is not None:
                changed = added(before, seed, x, part.alpha, place.position)
            else:
                changed = blended(before, seed, part.alpha, place.position, place.axes, (args, kwargs))
        return changed

    def follow(self) -> None:
        """Have the seeds that the host has there now; one that is the same keeps its average."""
        tap = None if self.origin is None else self.origin()
        if tap is None:
            return
        self.follows = True
        own = {part.seed_id: part.seed for part in self.parts}
        self.parts = [
            replace(part, seed=own[part.seed_id]) if part.seed_id in own else copied(part, {}) for part in tap.parts
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Twin:
        twin = Twin([copied(part, memo) for part in self.parts], self.place)
        twin.origin = self.origin
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """In a file there is nothing to follow."""
        return Twin, (self.parts, self.place)


def copied(part: Part, memo: dict[int, Any]) -> Part:
    """The same with a module of its own."""
    return replace(part, seed=copy.deepcopy(part.seed, memo))


def built_in(place: Place, parts: Sequence[Part], training: bool, module: nn.Module) -> nn.Module:
    """What takes the place of ``module``, with the seeds of ``parts``, themselves, one around the other."""
    grown = module
    for part in parts:
        grown = place.with_seed(part.seed, part.alpha)(grown)
        grown.training = module.training
        part.seed.train(training)
    return grown


def average() -> nn.Module | None:
    """The module that is being averaged with the one whose parameters are asked for; ``None`` where nobody averages.

    Those who average pair parameters by their order and give nothing by which they could be told, so that the calls
    under way are looked at: torch's ``AveragedModel`` and what is derived from it, timm's ``ModelEma``.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name in ("update_parameters", "update", "set"):
            owner = frame.f_locals.get("self")
            if isinstance(owner, AveragedModel) or type(owner).__name__.startswith("ModelEma"):
                module: nn.Module = owner.module  # type: ignore[union-attr]
                return module
    return None
