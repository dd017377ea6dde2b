"""Growth where an audition promises most.

The heuristic, but for *where*: before anything grows the largest blueprint that may germinate in each free slot is
auditioned there, behind the host. That pays where places differ in what reaches them, such as blocks side by side; in a
stack of blocks auditions favour late slots, while seeds near the input prove best (``docs/growtable.md``).
"""

from __future__ import annotations

from collections.abc import Iterator

from esper.leyline import WAIT, Decision, EnvView, FactoredAction, Op
from esper.tamiyo.policies.heuristic import HeuristicPolicy
from esper.tolaria.legality import legal_blueprints, legal_slots


class PromisePolicy(HeuristicPolicy):
    """The heuristic, which grows the largest seed that fits where most is promised."""

    name = "promise"

    def _grow(self, view: EnvView) -> Iterator[Decision]:
        if view.max_epochs - view.epoch < view.gates.shortest_life(self.config.tempo):
            return
        due = candidates(view)
        slots = {slot.slot_id: slot for slot in view.slots}
        promised = {
            name: max(each.value for each in slots[name].promise.values()) for name, _ in due if slots[name].promise
        }
        if len(promised) < len(due):
            yield audition(view)
            return
        order = sorted(due, key=lambda each: promised[each[0]], reverse=True)
        for name, blueprint in order:
            action = FactoredAction(Op.GERMINATE, name, blueprint, self.config.blend, 1.0, self.config.tempo)
            yield Decision(action, "of the free places it promises most", (("promise", promised[name]),))


def candidates(view: EnvView) -> tuple[tuple[str, str], ...]:
    """Every free slot with the largest blueprint that may germinate there now."""
    return tuple(
        (name, max(legal_blueprints(view, name), key=view.blueprint_parameters[name].__getitem__))
        for name in legal_slots(view, Op.GERMINATE)
    )


def audition(view: EnvView) -> Decision:
    """To wait while :func:`candidates` learn behind the host."""
    return Decision(WAIT, "what each empty place promises is measured first", audition=candidates(view))
