"""Copies of a model that grows: what stands in them for a tap, and averages that follow what grows.

``deepcopy`` and ``pickle`` of a tapped host give networks of their own: what the host computes, with the seeds that it
has. A copy whose weights are averaged with the host's (``AveragedModel``) follows its seeds too: one that germinates
joins the average, one that is pruned leaves it, and alpha is the host's.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import nn
from torch.optim.swa_utils import AveragedModel

from esper.kasmina.portable import Grown, added, blended

if TYPE_CHECKING:
    from esper.kasmina.probe import Place
    from esper.kasmina.tap import Tap


class Twin:
    """Forward hook in a copy, where the host has a tap: a seed of its own at a fixed alpha, or none."""

    def __init__(self, seed: nn.Module | None, seed_id: str | None, alpha: float, place: Place) -> None:
        self.seed, self.seed_id, self.alpha, self.place = seed, seed_id, alpha, place
        self.origin: ref[Tap] | None = None
        self.follows = False
        """Whether it belongs to an average."""

    @classmethod
    def of(cls, tap: Tap, memo: dict[int, Any]) -> Twin:
        """What stands for ``tap`` in the copy that ``memo`` belongs to."""
        twin = cls(copy.deepcopy(tap.seed, memo), tap.seed_id, tap.slot.alpha, tap.place)
        twin.origin = ref(tap)
        return twin

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The output with the seed's part in it; ``None`` where nothing changes."""
        if self.seed is None or self.alpha == 0.0:
            return None
        weight = next(self.seed.parameters(), None)
        if weight is not None and weight.device != (h := self.place.take(output)).device:
            self.seed.to(h.device)
        if self.seed.training is not module.training:
            self.seed.train(module.training)
        place, x = self.place, self.place.entering(args, kwargs)
        if x is not None:
            return added(output, self.seed, x, self.alpha, place.position)
        return blended(output, self.seed, self.alpha, place.position, place.axes)

    def follow(self) -> None:
        """Have the seed that the host has there now; one that is the same keeps its average."""
        tap = None if self.origin is None else self.origin()
        if tap is None:
            return
        self.follows = True
        if tap.seed_id != self.seed_id:
            self.seed, self.seed_id = copy.deepcopy(tap.seed), tap.seed_id
        self.alpha = tap.slot.alpha

    def __deepcopy__(self, memo: dict[int, Any]) -> Twin:
        twin = Twin(copy.deepcopy(self.seed, memo), self.seed_id, self.alpha, self.place)
        twin.origin = self.origin
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """In a file there is nothing to follow."""
        return Twin, (self.seed, self.seed_id, self.alpha, self.place)


def built_in(tap: Tap | Twin, module: nn.Module, seed: nn.Module, training: bool) -> Grown:
    """What takes the place of ``module``, with ``seed`` as the tap or its twin has it now."""
    alpha = tap.alpha if isinstance(tap, Twin) else tap.slot.alpha
    grown: Grown = tap.place.with_seed(seed, alpha)(module)
    grown.training = module.training
    seed.train(training)
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
