"""A policy that reads its host: it grows where an audition promises most."""

from __future__ import annotations

from esper.leyline import WAIT, Blend, Decision, EnvView, FactoredAction, Op
from esper.tamiyo.policies import EnvPolicy
from esper.tamiyo.policies.evidence import bring_through, just_failed
from esper.tolaria.legality import legal_blueprints, legal_slots


class ByPromise(EnvPolicy):
    """The largest blueprint in every slot is auditioned in the first epoch; then it grows where it promised most."""

    name = "by_promise"

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """A seed's gate, an audition, or a germination."""
        for slot in view.slots:
            decision = bring_through(view, slot)
            if decision is not None and not just_failed(view, decision.action):
                return decision
        free = legal_slots(view, Op.GERMINATE)
        if not free:
            return Decision(WAIT, "no slot is free")
        if view.epoch == 0:
            heard = tuple((slot, _largest(view, slot)) for slot in free)
            return Decision(WAIT, "places are auditioned first", audition=heard)
        promised = {
            slot.slot_id: max(each.value for each in slot.promise.values())
            for slot in view.slots
            if slot.slot_id in free and slot.promise
        }
        if not promised:
            return Decision(WAIT, "no place was auditioned")
        best = max(promised, key=promised.__getitem__)
        action = FactoredAction(Op.GERMINATE, best, _largest(view, best), Blend.LINEAR, alpha_target=1.0, tempo=1)
        return Decision(action, "it promises most", (("promise", promised[best]),))


def _largest(view: EnvView, slot: str) -> str:
    return max(legal_blueprints(view, slot), key=view.blueprint_parameters[slot].__getitem__)
