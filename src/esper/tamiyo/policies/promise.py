"""Growth where an audition promises most.

The heuristic, but for *where*: before anything grows the largest blueprint that may germinate in each free slot is
auditioned there, behind the host. That pays where places differ in what reaches them, such as blocks side by side; in a
stack of blocks auditions favour late slots, while seeds near the input prove best (``docs/growtable.md``).

What germinates, and when, is the heuristic's choice: what was pruned goes behind what was not. What else differs:
nothing grows before the audition was heard, nor in a place that promises nothing (no finite number above 0), so that a
host without such a place stays as it is. A place that has promised is not auditioned again, whatever germinates there
later, and it is heard with its largest blueprint alone. A run too short for an audition and a seed after it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from esper.leyline import WAIT, Decision, EnvView, Op, SlotView, UsageError
from esper.tamiyo.policies.heuristic import HeuristicPolicy
from esper.tolaria.legality import legal_blueprints, legal_slots


class PromisePolicy(HeuristicPolicy):
    """The heuristic, which grows where most is promised."""

    name = "promise"

    def _grow(self, view: EnvView) -> Iterator[Decision]:
        free = [slot for slot in view.slots if slot.slot_id in legal_slots(view, Op.GERMINATE)]
        if not all(slot.promise for slot in free) and (due := audition_in_time(view, self)) is not None:
            yield due
            return
        if view.epoch < self.config.first_epoch or not self.has_time(view):
            return
        promised = {slot.slot_id: most for slot in free if (most := _most(slot)) > 0.0}
        for name in sorted(promised, key=promised.__getitem__, reverse=True):
            if (due := self.germination(view, name)) is not None:
                why = f"of the free places it promises most; {due.reason}"
                yield replace(due, reason=why, evidence=(("promise", promised[name]), *due.evidence))


def _most(slot: SlotView) -> float:
    """The greatest finite promise of all blueprints that were auditioned there; 0 where none is above 0."""
    return max((each.value for each in slot.promise.values() if math.isfinite(each.value)), default=0.0)


def candidates(view: EnvView) -> tuple[tuple[str, str], ...]:
    """Every free slot with the largest blueprint that may germinate there now."""
    return tuple(
        (name, max(legal_blueprints(view, name), key=view.blueprint_parameters[name].__getitem__))
        for name in legal_slots(view, Op.GERMINATE)
    )


def audition_in_time(view: EnvView, rules: HeuristicPolicy) -> Decision | None:
    """To audition every free place; ``None`` where no seed could be kept after it. Raises ``UsageError`` where that is
    so before the first epoch: such a run could grow nothing.
    """
    life = view.gates.shortest_life(rules.config.tempo)
    if view.max_epochs - view.epoch > life:
        return audition(candidates(view))
    if view.epoch == 0:
        raise UsageError(
            f"{view.max_epochs} epochs are too few for a policy that auditions places first: one for that, and by the "
            f"gates a seed is kept after {life} more at the earliest; legal: {life + 1} or more, or a policy that "
            "holds no audition, such as heuristic"
        )
    return None


def audition(chosen: Iterable[tuple[str, str]]) -> Decision:
    """To wait while blueprints in slots, ``chosen``, learn behind the host."""
    return Decision(WAIT, "what each empty place promises is measured first", audition=tuple(chosen))
