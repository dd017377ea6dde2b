"""What an episode delivers: the best network that validation has seen, and how it is told from others.

The best of several noisy validations is selected by them, so that its validation figure flatters it; a test figure does
not, which is taken of what is delivered alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from esper.leyline import AlphaConfig, EnvView, Metric, SeedStage, SlotView
from esper.tolaria.nested import State, join, plain_state, split

ALONE: Final = 4
"""Unproven seeds that a last look at validation is taken of one by one, at most."""

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
    """Slots whose seed the network feels though it was not kept for good, the weakest by what is known first."""
    felt = [s for s in view.slots if s.live and s.alpha != 0.0 and s.stage is not SeedStage.FOSSILIZED]
    return [slot.slot_id for slot in sorted(felt, key=_known_worth)]


def _known_worth(slot: SlotView) -> float:
    """Loss of an example that the seed is known to take off, or else that its place promised; 0 where neither was
    measured."""
    if slot.removal_cost_loss is not None:
        return slot.removal_cost_loss.value.value
    promise = slot.promise.get(slot.blueprint or "")
    return 0.0 if promise is None else promise.value


def looks(slots: Sequence[str]) -> list[AlphaConfig]:
    """What the last look at validation is of, for the unproven ``slots``, the weakest first: the network as it is, and
    without each. Of more than :data:`ALONE` that would take too long: without the weakest eighth, quarter and half,
    and without all."""
    if len(slots) <= ALONE:
        return [{}, *({slot: 0.0} for slot in slots)]
    counts = sorted({-(-len(slots) // part) for part in (8, 4, 2, 1)})
    return [dict.fromkeys(slots[:count], 0.0) for count in (0, *counts)]


def why_left_out(slots: Sequence[str]) -> str:
    """What the last look says of those of ``slots`` that are left out."""
    together = "" if len(slots) <= ALONE else " and those that are left out with it"
    return f"not proven, and validation is no worse without it{together}"


def left_out(slots: Sequence[str], scored: Sequence[Scored], metric: Metric) -> AlphaConfig:
    """The unproven seeds to leave out, by the last look: those without whom validation is no worse, or as many of the
    weakest as it is best without. A seed costs parameters, so that where nothing tells networks apart the smaller one
    is taken."""
    asked = looks(slots)
    if len(slots) <= ALONE:
        pairs = zip(asked[1:], scored[1:], strict=True)
        return {slot: 0.0 for off, without in pairs if not better(scored[0], without, metric) for slot in off}
    best = 0
    for number, without in enumerate(scored):
        if not better(scored[best], without, metric):
            best = number
    return asked[best]
