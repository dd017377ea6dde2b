"""Seeds that were kept in a slot that opened again: part of the network for good, beneath the one that grows now.

A seed stays terminal, a slot does not: where it may keep several, the one that was kept last stands on top of those
before it, and the next grows on top of all. Nothing switches a kept one off, not an alpha of 0 for the slot either, so
that what is measured of the newest seed is measured with the older ones in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.evidence import fact
from esper.kasmina.isolation import added, blend
from esper.kasmina.portable import Call, run_seed
from esper.kasmina.state import SeedState
from esper.leyline import KeptView


@dataclass(frozen=True, slots=True)
class Part:
    """A seed in a slot, kept or growing."""

    seed: nn.Module
    alpha: float
    state: SeedState

    @property
    def seed_id(self) -> str:
        """Its name."""
        return self.state.seed_id


class Kept(nn.Module):
    """A seed that was kept, at the alpha that it was kept at."""

    def __init__(self, seed: nn.Module, state: SeedState) -> None:
        super().__init__()
        self.seed = seed
        self.state = state

    def forward(self, h: Tensor, x: Tensor | None = None, call: Call | None = None) -> Tensor:
        """``h`` with the seed's part in it, of the shape of ``h``; beside a module it sees the input ``x``.

        ``call`` is what the module of the host was called with.
        """
        if self.state.alpha == 0.0:
            return h
        s = run(self.seed, h if x is None else x, h.dtype, call)
        return blend(h, s, self.state.alpha) if x is None else added(h, s, self.state.alpha)

    def part(self) -> Part:
        """What it is, for those who build it into another module."""
        return Part(self.seed, self.state.alpha, self.state)

    def view(self) -> KeptView:
        """Plain data for a policy."""
        state = self.state
        cost = fact(state.metrics, "removal_cost")
        return KeptView(state.seed_id, state.blueprint_id, state.alpha, state.parameters or 0, cost)

    def lifecycle(self) -> Mapping[str, Any]:
        """JSON-able; without the weights."""
        return self.state.to_dict()


def run(seed: nn.Module, h: Tensor, dtype: torch.dtype, call: Call | None = None) -> Tensor:
    """What a seed with a path back to the host makes of ``h``, in ``dtype``, where its module was called so."""
    if torch.is_grad_enabled() and not h.requires_grad:
        h = h.contiguous()  # a frozen host's feature is as dangerous to GroupNorm as a detached one
    return run_seed(seed, h, dtype, call)
