"""Masks of the factored action space. Two kinds that are never mixed:

*availability* says which choices are legal now, conditioned on op and slot, from :mod:`esper.tolaria.legality`;
*relevance* says which heads an op consumes, whatever the state. Sampling head by head under availability, and only the
relevant heads, can say every legal action and no illegal one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.leyline import HEADS, RELEVANT_HEADS, ActionSpace, EnvView, FactoredAction, Op, SeedStage
from esper.tolaria.legality import legal_alpha_targets, legal_blueprints, legal_slots

BoolArray = npt.NDArray[np.bool_]

RELEVANCE: Final[BoolArray] = np.array([[head in RELEVANT_HEADS[op] for head in HEADS] for op in Op])
"""*Relevance*, ``[op, head]``: whether the op consumes the head."""
RELEVANCE.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Availability:
    """Which choices are legal now. Rows of an op or a slot with nothing to choose are all false."""

    op: BoolArray
    """``[op]``; WAIT is always there, another op when some slot and choice make it legal."""
    slot: BoolArray
    """``[op, slot]``"""
    blueprint: BoolArray
    """``[slot, blueprint]``; consumed by GERMINATE alone."""
    blend: BoolArray
    """``[blend]``; no state restricts it, who offers less than all that is legal may."""
    alpha_target: BoolArray
    """``[slot, alpha_target]``; GERMINATE and SET_ALPHA never share a slot, so the slot decides."""
    tempo: BoolArray
    """``[tempo]``; as ``blend``."""

    def allows(self, space: ActionSpace, action: FactoredAction) -> bool:
        """Whether sampling head by head could have said ``action``."""
        op = int(action.op)
        if not self.op[op]:
            return False
        if action.slot is None:
            return action == FactoredAction(action.op) and not RELEVANCE[op, HEADS.index("slot")]
        slot = space.slots.index(action.slot)
        return bool(
            self.slot[op, slot]
            and (action.blueprint is None or self.blueprint[slot, space.blueprints.index(action.blueprint)])
            and (action.alpha_target is None or self.alpha_target[slot, space.alpha_targets.index(action.alpha_target)])
            and (action.blend is None or self.blend[space.blends.index(action.blend)])
            and (action.tempo is None or self.tempo[space.tempos.index(action.tempo)])
        )

    def marginals(self) -> dict[str, BoolArray]:
        """One mask per head, for samplers that choose every head on its own.

        A choice is allowed when some legal action consumes it. Where no legal op consumes a head, every choice of it is
        allowed, since it will be ignored. Combinations that these masks cannot exclude may be illegal.
        """
        acting = self.op & RELEVANCE[:, HEADS.index("slot")]
        shaped = self.op & RELEVANCE[:, HEADS.index("alpha_target")]
        return {
            "op": self.op,
            "slot": _union(self.slot[acting]),
            "blueprint": _union(self.blueprint),
            "blend": self.blend,
            "alpha_target": _union(self.alpha_target[_union(self.slot[shaped])]),
            "tempo": self.tempo,
        }


def availability(view: EnvView, space: ActionSpace) -> Availability:
    """*Availability* in the state ``view``, indexed as ``space`` is."""
    slot = np.zeros((len(Op), len(space.slots)), dtype=bool)
    for op in Op:
        slot[op, [space.slots.index(name) for name in legal_slots(view, op)]] = True
    blueprint = np.zeros((len(space.slots), len(space.blueprints)), dtype=bool)
    alpha_target = np.zeros((len(space.slots), len(space.alpha_targets)), dtype=bool)
    for i, (name, state) in enumerate(_by_name(view, space)):
        for choice in legal_blueprints(view, name):
            blueprint[i, space.blueprints.index(choice)] = True
        targets = legal_alpha_targets(view, name) if state is SeedStage.HOLDING else space.alpha_targets
        alpha_target[i] = [target in targets for target in space.alpha_targets]
    alpha_target &= (slot[Op.GERMINATE] | slot[Op.SET_ALPHA])[:, None]
    possible = np.array([op is Op.WAIT or slot[op].any() for op in Op])
    return Availability(
        possible,
        slot,
        blueprint,
        np.ones(len(space.blends), dtype=bool),
        alpha_target,
        np.ones(len(space.tempos), dtype=bool),
    )


def to_action(space: ActionSpace, indices: Sequence[int]) -> FactoredAction:
    """The action that ``indices`` (one per head, in the order of ``HEADS``) name; irrelevant heads become ``None``."""
    op = Op(int(indices[0]))
    choices = (space.slots, space.blueprints, space.blends, space.alpha_targets, space.tempos)
    chosen = {
        head: options[int(index)]
        for head, options, index in zip(HEADS[1:], choices, indices[1:], strict=True)
        if head in RELEVANT_HEADS[op]
    }
    return FactoredAction(op, **chosen)  # type: ignore[arg-type]


def to_indices(space: ActionSpace, action: FactoredAction) -> tuple[int, ...]:
    """Undo of :func:`to_action`. Heads that the op does not consume are 0, and mean nothing (see ``RELEVANCE``)."""
    choices = (space.slots, space.blueprints, space.blends, space.alpha_targets, space.tempos)
    chosen = (getattr(action, head) for head in HEADS[1:])
    return (
        int(action.op),
        *(0 if value is None else options.index(value) for options, value in zip(choices, chosen, strict=True)),
    )


def _by_name(view: EnvView, space: ActionSpace) -> list[tuple[str, SeedStage]]:
    stages = {slot.slot_id: slot.stage for slot in view.slots}
    return [(name, stages[name]) for name in space.slots]


def _union(masks: BoolArray) -> BoolArray:
    """What any row allows; everything where no row allows anything."""
    union = np.logical_or.reduce(masks, axis=0)
    return union if union.any() else np.ones_like(union)
