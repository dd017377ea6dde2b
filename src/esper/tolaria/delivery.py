"""What an episode delivers: the best network that validation has seen, and how it is told from others.

The best of several noisy validations is selected by them, so that its validation figure flatters it; a test figure does
not, which is taken of what is delivered alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from esper.leyline import AlphaConfig, EnvView, Metric, SeedStage
from esper.tolaria.nested import State, join, plain_state, split

Scored = tuple[float, float]
"""Metric and loss of a network on validation."""


def better(one: Scored, other: Scored | None, metric: Metric) -> bool:
    """Whether ``one`` is better; equal metrics are told apart by the loss. NaN is worst."""
    if not all(map(math.isfinite, one)):
        return False
    if other is None or not all(map(math.isfinite, other)):
        return True
    sign = 1.0 if metric.higher_is_better else -1.0
    return (sign * one[0], -one[1]) > (sign * other[0], -other[1])


@dataclass(frozen=True, slots=True)
class Validated:
    """A network with what validation said of it."""

    epoch: int
    metric: float
    loss: float
    seeds: Mapping[str, float]
    """seed id -> alpha, of those that took part."""
    network: State

    @property
    def scored(self) -> Scored:
        """Metric and loss."""
        return self.metric, self.loss

    def state(self) -> State:
        """As it is stored."""
        about = {name: getattr(self, name) for name in ("epoch", "metric", "loss")} | {"seeds": dict(self.seeds)}
        return join({"about": plain_state(about), "network": self.network})

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Validated:
        """Undo of :meth:`state`."""
        parts = split(state, "about", "network")
        return cls(**parts["about"]["plain"], network=parts["network"])

    def kept_in(self, kept: Mapping[str, Tensor]) -> None:
        """Hold no second copy of what a trainer's state of the same epoch, the last good one, holds on the CPU."""
        tensors = self.network["tensors"]
        for name in tensors:
            same = kept.get(f"model/{name}")
            if same is not None and same.device.type == "cpu":
                tensors[name] = same


@dataclass(frozen=True, slots=True)
class Delivered:
    """What an episode ends with."""

    metric: float
    loss: float
    which: str | None = None
    epoch: int | None = None


def taking_part(view: EnvView, without: AlphaConfig | None = None) -> dict[str, float]:
    """seed id -> alpha of the seeds that change what the network computes, those ``without`` whom it is left out."""
    newest = {
        slot.seed_id or "": slot.alpha
        for slot in view.slots
        if slot.live and slot.alpha != 0.0 and slot.slot_id not in (without or {})
    }
    return newest | {seed.seed_id: seed.alpha for slot in view.slots for seed in slot.kept if seed.alpha != 0.0}


def unproven(view: EnvView) -> list[str]:
    """Slots whose seed the network feels though it was not kept for good."""
    return [s.slot_id for s in view.slots if s.live and s.alpha != 0.0 and s.stage is not SeedStage.FOSSILIZED]


def looks(slots: list[str]) -> list[AlphaConfig]:
    """What the last look at validation is of: the network as it is, without each unproven seed, and without all."""
    every = dict.fromkeys(slots, 0.0)
    return [{}, *({slot: 0.0} for slot in slots), *([every] if len(slots) > 1 else [])]


def left_out(slots: list[str], scored: list[Scored], metric: Metric) -> AlphaConfig:
    """The unproven seeds to leave out, by the last look: those without whom validation is no worse. A seed costs
    parameters, so that where nothing tells them apart the network without it is taken."""
    return {
        slot: 0.0 for slot, without in zip(slots, scored[1:], strict=False) if not better(scored[0], without, metric)
    }
