"""What can be tabulated in a world: nothing, single choices of slot, blueprint and time, and pairs of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from esper.bench.growtable.worlds import BLUEPRINTS, SLOTS, WorldSpec
from esper.leyline import Blend, DataError, FactoredAction, Op
from esper.leyline.decoding import told
from esper.tamiyo.policies import Entry

STATIC: Final = "static"


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """Let ``blueprint`` germinate in ``slot`` after ``epoch`` epochs."""

    epoch: int
    slot: str
    blueprint: str

    def __str__(self) -> str:
        return f"{self.slot}-{self.blueprint}-{self.epoch}"

    @property
    def action(self) -> FactoredAction:
        """The one way in which a table's seeds germinate: a linear ramp of one epoch to alpha 1."""
        return FactoredAction(Op.GERMINATE, self.slot, self.blueprint, Blend.LINEAR, 1.0, 1)

    @property
    def entry(self) -> Entry:
        """As a schedule takes it."""
        return Entry(self.epoch, self.action)


Choices = tuple[Choice, ...]
"""A sequence that is tabulated, in the order of time; empty for the host that never grows."""


def name_of(choices: Choices) -> str:
    """``block0-conv5-1+block2-norm-4``; ``static`` for none."""
    return "+".join(map(str, choices)) or STATIC


def choices_of(name: str) -> Choices:
    """Undo of :func:`name_of`. Raises ``DataError``."""
    if name == STATIC:
        return ()
    choices = []
    for part in name.split("+"):
        slot, blueprint, epoch = (part.split("-") + ["", ""])[:3]
        if slot not in SLOTS or blueprint not in BLUEPRINTS or not re.fullmatch("[0-9]{1,6}", epoch):
            raise DataError(f"{told(repr(name))} names no sequence of choices")
        choices.append(Choice(int(epoch), slot, blueprint))
    return tuple(choices)


def singles(world: WorldSpec, count: int | None = None) -> list[Choices]:
    """Every affordable choice of slot, blueprint and time, or the first ``count`` of them.

    Times come coarse first (first, last, the middle, ...), so that a part of them still spans the world's length.
    """
    found: list[Choices] = [
        (Choice(time, slot, blueprint),)
        for time in _coarse_first(world.times)
        for slot in SLOTS
        for blueprint in world.blueprints
    ]
    return [choices for choices in found if affordable(world, choices)][:count]


def pairs(world: WorldSpec, count: int, among: Sequence[Choices]) -> list[Choices]:
    """``count`` pairs in different slots, of the single choices ``among``, in one fixed random order of all pairs."""
    if world.max_seeds < 2:
        return []
    everything = [
        tuple(sorted((*first, *second)))
        for first, second in combinations(sorted(singles(world)), 2)
        if first[0].slot != second[0].slot
    ]
    known = set(among)
    # RandomState's streams are frozen for ever
    order = np.random.RandomState(0).permutation(len(everything))
    shuffled = (everything[i] for i in order)
    legal = (pair for pair in shuffled if {pair[:1], pair[1:]} <= known and affordable(world, pair))
    return [pair for pair, _ in zip(legal, range(count), strict=False)]


def affordable(world: WorldSpec, choices: Choices) -> bool:
    """Whether the world's budget has room for all of them together."""
    total = sum(world.cost(choice.blueprint) for choice in choices)
    return world.parameters is None or total <= world.parameters


def _coarse_first(times: Sequence[int]) -> list[int]:
    """Both ends, then the middles of what is left between."""
    order = [times[0], times[-1]] if len(times) > 1 else list(times)
    gaps = [(0, len(times) - 1)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if middle > low:
            order.append(times[middle])
            gaps += [(low, middle), (middle, high)]
    return order
