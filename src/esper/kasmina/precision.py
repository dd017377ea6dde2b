"""The number formats that a pass is computed in: the state of ``torch.autocast``, and what may differ at a format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

TOLERANCE = 1e-5
"""Largest difference, absolute and relative, between two ways to compute the same in float32."""
ROUNDINGS = 4
"""As many roundings may two ways to compute the same in a narrower format differ by."""


@dataclass(frozen=True, slots=True)
class Autocast:
    """The state of ``torch.autocast`` per kind of device: whether it is on, and to which format it casts."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls, device: torch.device) -> Autocast:
        """The state that a pass on ``device`` would be computed in if it were made here."""
        kinds = [kind for kind in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(kind)]
        return cls(tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds))

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The formats that are cast to."""
        return {dtype for _, enabled, dtype in self.states if enabled}

    def to(self, device: torch.device) -> torch.dtype | None:
        """The format that is cast to on ``device``; ``None`` where it is off."""
        return next((dtype for kind, enabled, dtype in self.states if enabled and kind == device.type), None)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, passes are computed in this state, whatever it is outside, and with the weights as they are now."""
        if self.dtypes:
            torch.clear_autocast_cache()  # casts of weights live as long as the outermost autocast, through any step
        with ExitStack() as stack:
            for kind, enabled, dtype in self.states:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield


def weight_dtype(module: nn.Module, host: nn.Module, feature: torch.dtype, cast_to: torch.dtype | None) -> torch.dtype:
    """The format of a seed's weights at a site of ``host``, on the output of ``module``, whose feature is ``feature``.

    It is the feature's own, unless autocast made it (``cast_to``: the format that autocast gave the feature): then it
    is that of the weights around, which autocast leaves as they are.
    """
    if feature is not cast_to:
        return feature
    weights = [weight for part in (module, host) for weight in part.parameters() if weight.is_floating_point()]
    return weights[0].dtype if weights else torch.float32


def tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """How much outputs computed in these formats may differ, absolutely and relatively, and still be the same."""
    roundings = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point and dtype.itemsize < 4]
    return max([TOLERANCE, *(ROUNDINGS * eps for eps in roundings)])
