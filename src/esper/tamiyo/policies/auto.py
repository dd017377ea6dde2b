"""Growth that places seeds by what was measured of each place.

Where a host learns, this is the heuristic. Where it is held (a pretrained one, frozen but for its head) and seeds may
grow beside its modules, there are many places, and a seed harms nothing that would have adapted:

- *where*: by an audition of all places at once, before anything grows: the fewest parameters that hold
  :attr:`AutoConfig.share` of all that was promised, the most promising place for a parameter first;
- *what*: a small seed in many places rather than a large one in few; where every seed of a round was settled, some
  were kept and time is left, the next round auditions what is empty;
- *how*: felt from birth, since its last layer is zero, so that all learn together in one pass;
- *keep* what is proven, *prune* what is refuted, by the one definition that gates have. What is still open when the
  episode ends stays if validation is worse without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from esper.kasmina.evidence import Standing
from esper.leyline import WAIT, Blend, Decision, EnvView, FactoredAction, Op, Promise, SeedStage, SlotView
from esper.tamiyo.policies.evidence import bring_through, just_failed, worth
from esper.tamiyo.policies.heuristic import HeuristicConfig, HeuristicPolicy
from esper.tamiyo.policies.promise import audition
from esper.tolaria.legality import legal_blueprints

HELD: Final = 0.1
"""A host is held where less than this share of its parameters learns."""


@dataclass(frozen=True, slots=True)
class AutoConfig:
    """How a host that is held is grown."""

    share: float = 0.9
    """Seeds go to the fewest parameters whose places hold this share of what all places promise."""
    size: float = 4.0
    """The largest seed of at most so many times the smallest one's parameters is tried in a place."""
    evidence_share: float = 0.1
    """What seeds are worth is measured while that takes at most this share of all other work so far; what it took to
    judge the seeds of a previous run is in neither."""


class AutoPolicy(HeuristicPolicy):
    """By promise where the host is held, by the heuristic's rules where it learns."""

    name = "auto"

    def __init__(self, config: HeuristicConfig | None = None, placing: AutoConfig | None = None) -> None:
        super().__init__(config)
        self.placing = placing or AutoConfig()

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """Decide from the view alone."""
        if not held(view):
            return super().decide_env(env, view)
        found = list(self._settle(view)) or list(self._place(view))
        first = found[0] if found else Decision(WAIT, "every seed is learning, and no place is due")
        return replace(first, also=tuple(found[1:]), look=self._look(view))

    def _settle(self, view: EnvView) -> Iterator[Decision]:
        """What evidence decides: refuted seeds go, proven ones go on."""
        for slot in view.slots:
            if slot.stage not in (SeedStage.TRAINING, SeedStage.HOLDING):
                continue
            says = worth(view, slot)
            if says.standing is Standing.REFUTED:
                decision = Decision(FactoredAction(Op.PRUNE, slot.slot_id), f"{slot.blueprint}: {says.reason}")
            elif (found := bring_through(view, slot)) is not None:
                decision = found
            else:
                continue
            if not just_failed(view, decision.action):
                yield decision

    def _place(self, view: EnvView) -> Iterator[Decision]:
        """The next round of seeds, or the audition before it, when nothing is on its way."""
        if any(slot.live and slot.stage is not SeedStage.FOSSILIZED for slot in view.slots):
            return
        settled = bool(view.pruned) or bool(view.fossilized)
        left = view.max_epochs - view.epoch
        if (settled and (not view.fossilized or left < view.gates.shortest_life(self.config.tempo) + 1)) or left < 2:
            return
        slots = {slot.slot_id: slot for slot in view.slots}
        wanted = {slot_id: kind for slot_id, slot in slots.items() if (kind := self._next_seed(view, slot)) is not None}
        promised = {slot_id: slots[slot_id].promise.get(kind) for slot_id, kind in wanted.items()}
        fresh = {slot_id: each.value for slot_id, each in promised.items() if each and _is_fresh(view, each)}
        if len(fresh) < len(wanted):
            yield audition(wanted.items())
            return
        yield from self._germinate(view, wanted, fresh)

    def _germinate(self, view: EnvView, wanted: dict[str, str], promised: dict[str, float]) -> Iterator[Decision]:
        sizes = {slot_id: view.blueprint_parameters[slot_id][kind] for slot_id, kind in wanted.items()}
        order = [slot_id for slot_id, value in promised.items() if value > 0.0]
        order.sort(key=lambda slot_id: promised[slot_id] / sizes[slot_id], reverse=True)
        total = sum(promised[slot_id] for slot_id in order)
        taken, parameters, seeds = 0.0, view.seed_parameters, view.live_seeds
        for slot_id in order:
            size, value = sizes[slot_id], promised[slot_id]
            if taken >= self.placing.share * total or (view.max_seeds is not None and seeds >= view.max_seeds):
                return
            if view.parameter_budget is not None and parameters + size > view.parameter_budget:
                continue
            taken, parameters, seeds = taken + value, parameters + size, seeds + 1
            kind, tempo = wanted[slot_id], self.config.tempo
            action = FactoredAction(Op.GERMINATE, slot_id, kind, Blend.LINEAR, 1.0, tempo, incubation="graft")
            evidence = (("promise", value), ("share_of_all", value / total), ("parameters", float(size)))
            yield Decision(action, "among the places that promise most for a parameter", evidence)

    def _next_seed(self, view: EnvView, slot: SlotView) -> str | None:
        """The blueprint that may germinate there now."""
        sizes = view.blueprint_parameters[slot.slot_id]
        legal = sorted(legal_blueprints(view, slot.slot_id), key=sizes.__getitem__)
        return next((each for each in reversed(legal) if sizes[each] <= self.placing.size * sizes[legal[0]]), None)

    def _look(self, view: EnvView) -> bool:
        """Whether what seeds are worth is to be measured after the coming epoch: where gates could go by it, and the
        work that it takes, a pass over validation for each seed, is a small part of all."""
        asked = ((slot, view.gates.least_epochs(slot.stage)) for slot in view.slots)
        ready = sum(least is not None and slot.epochs_in_stage + 1 >= least for slot, least in asked)
        if not ready or not view.epoch:
            return ready > 0
        measured = view.spent.get("counterfactual_macs", 0)
        evidence = measured - view.spent_before.get("counterfactual_macs", 0)
        look = ready * view.spent.get("validation_macs", 0) / view.epoch
        return evidence + look <= self.placing.evidence_share * (view.spent.get("total_macs", 0) - measured)


def held(view: EnvView) -> bool:
    """Whether hardly anything of the host learns, and seeds may grow beside its modules."""
    learning = view.learning_parameters
    beside = any(slot.beside for slot in view.slots)
    return learning is not None and beside and is_held(learning, view.host_parameters)


def is_held(learning: int, parameters: int) -> bool:
    """Whether hardly any of a host's parameters learn."""
    return learning < HELD * parameters


def _is_fresh(view: EnvView, promise: Promise) -> bool:
    """Whether it was measured since anything was settled: in the last epoch, or before anything grew."""
    return not (view.pruned or view.fossilized) or promise.epoch == view.epoch
