"""Which actions are legal in an environment's state: pure functions of a :class:`EnvView`, the one source of truth
for the engine, the availability masks and the Gymnasium environment.

Legal means that the action can be attempted. Its gate may still answer no: that is evidence, not illegality.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from esper.leyline import (
    ALPHA_TARGETS,
    PRUNABLE,
    RELEVANT_HEADS,
    Blend,
    EnvView,
    FactoredAction,
    Op,
    SeedStage,
    SlotView,
)

ALPHA_TOLERANCE: Final = 1e-6
"""Targets closer than this to the present alpha are the present alpha."""


def legal_slots(view: EnvView, op: Op) -> tuple[str, ...]:
    """Slots, in network order, in which ``op`` can make a legal action; empty for WAIT, which takes no slot."""
    if op is Op.WAIT:
        return ()
    return tuple(slot.slot_id for slot in view.slots if _completable(view, op, slot))


def legal_blueprints(view: EnvView, slot: str) -> tuple[str, ...]:
    """Blueprints, in the run's order, that may germinate in ``slot`` now; empty when nothing may."""
    found = _find(view, slot)
    if found is None or _against_germination(view, found):
        return ()
    return tuple(name for name in view.blueprints if _against_blueprint(view, slot, name) is None)


def legal_alpha_targets(view: EnvView, slot: str) -> tuple[float, ...]:
    """Alpha targets that SET_ALPHA may ask for in ``slot`` now; empty unless it is HOLDING."""
    found = _find(view, slot)
    if found is None or found.stage is not SeedStage.HOLDING:
        return ()
    return tuple(target for target in ALPHA_TARGETS if not _same_alpha(target, found.alpha))


def why_illegal(view: EnvView, action: FactoredAction) -> str | None:
    """A sentence that names what stands against ``action``, or ``None`` when it is legal."""
    against = _against_heads(action)
    if against is not None or action.op is Op.WAIT:
        return against
    slot = _find(view, action.slot or "")
    if slot is None:
        return f"there is no slot {action.slot!r}; the slots are {', '.join(s.slot_id for s in view.slots)}"
    return _AGAINST[action.op](view, slot, action)


def _find(view: EnvView, slot_id: str) -> SlotView | None:
    return next((slot for slot in view.slots if slot.slot_id == slot_id), None)


def _same_alpha(target: float, alpha: float) -> bool:
    return math.isclose(target, alpha, rel_tol=0.0, abs_tol=ALPHA_TOLERANCE)


def _completable(view: EnvView, op: Op, slot: SlotView) -> bool:
    """Whether some choice of the other heads makes ``op`` legal in ``slot``."""
    if op is Op.GERMINATE:
        return bool(legal_blueprints(view, slot.slot_id))
    if op is Op.SET_ALPHA:
        return bool(legal_alpha_targets(view, slot.slot_id))
    return _AGAINST[op](view, slot, FactoredAction(op, slot.slot_id)) is None


def _against_heads(action: FactoredAction) -> str | None:
    """What is wrong with the action whatever the state: a head missing, superfluous or out of its domain."""
    relevant = RELEVANT_HEADS[action.op]
    for head in ("slot", "blueprint", "blend", "alpha_target", "tempo"):
        given = getattr(action, head)
        if head in relevant and given is None:
            return f"{action.op.name} needs a {head}"
        if head not in relevant and given is not None:
            return f"{action.op.name} takes no {head}, and was given {given!r}"
    if action.blend is not None and action.blend not in tuple(Blend):
        return f"there is no blend {action.blend!r}; the blends are {', '.join(Blend)}"
    if action.alpha_target is not None and not 0.0 < action.alpha_target <= 1.0:
        return f"alpha_target {action.alpha_target} is not in (0, 1]"
    if action.tempo is not None and action.tempo < 1:
        return f"tempo {action.tempo} is not a positive number of epochs"
    return None


def _against_germination(view: EnvView, slot: SlotView) -> str | None:
    """What stands against any seed in ``slot``."""
    if slot.stage is not SeedStage.DORMANT:
        return f"slot {slot.slot_id} is {slot.stage.name}, not DORMANT"
    if slot.slot_id in view.vetoed:
        return f"the governor forbids growth in slot {slot.slot_id} for now"
    if view.max_seeds is not None and view.live_seeds >= view.max_seeds:
        return f"{view.live_seeds} seeds are live, and max_seeds is {view.max_seeds}"
    if view.epoch >= view.max_epochs:
        return f"epoch {view.epoch} of {view.max_epochs} is the last; a new seed could not learn"
    return None


def _against_blueprint(view: EnvView, slot: str, blueprint: str) -> str | None:
    """What stands against ``blueprint`` in a slot in which something may germinate."""
    if blueprint not in view.blueprints:
        return f"there is no blueprint {blueprint!r}; the blueprints are {', '.join(view.blueprints)}"
    parameters = view.blueprint_parameters.get(slot, {}).get(blueprint)
    if parameters is None:
        return f"blueprint {blueprint} cannot be built in slot {slot}"
    total = view.seed_parameters + parameters
    if view.parameter_budget is not None and total > view.parameter_budget:
        return f"{blueprint} would bring the seeds to {total} parameters, and the budget is {view.parameter_budget}"
    return None


def _against_germinate(view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
    return _against_germination(view, slot) or _against_blueprint(view, slot.slot_id, action.blueprint or "")


def _against_advance(view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
    return _unless(slot.stage is SeedStage.TRAINING, slot, "TRAINING")


def _against_set_alpha(view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
    if slot.stage is SeedStage.HOLDING and action.alpha_target is not None:
        same = _same_alpha(action.alpha_target, slot.alpha)
        return f"slot {slot.slot_id} has alpha {slot.alpha:g} already" if same else None
    return _unless(slot.stage is SeedStage.HOLDING, slot, "HOLDING")


def _against_prune(view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
    return _unless(slot.stage in PRUNABLE, slot, " or ".join(stage.name for stage in sorted(PRUNABLE)))


def _against_fossilize(view: EnvView, slot: SlotView, action: FactoredAction) -> str | None:
    return _unless(slot.stage is SeedStage.HOLDING, slot, "HOLDING")


def _unless(right: bool, slot: SlotView, wanted: str) -> str | None:
    return None if right else f"slot {slot.slot_id} is {slot.stage.name}, not {wanted}"


_AGAINST: Final[MappingProxyType[Op, Callable[[EnvView, SlotView, FactoredAction], str | None]]] = MappingProxyType(
    {
        Op.GERMINATE: _against_germinate,
        Op.ADVANCE: _against_advance,
        Op.SET_ALPHA: _against_set_alpha,
        Op.PRUNE: _against_prune,
        Op.FOSSILIZE: _against_fossilize,
    }
)
