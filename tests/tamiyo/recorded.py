"""Views as a run would give them: a scripted engine that answers actions with a plausible life, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from env_views import PARAMETERS, measured, row_view
from esper.leyline import ActionOutcome, Decision, EnvSpec, EnvView, Fact, Op, SeedStage, SlotView
from esper.tamiyo.policies import EnvPolicy
from esper.tolaria.legality import why_illegal

Gains = Mapping[tuple[str, str], float]
"""(slot, blueprint) -> what the seed is worth in loss and, times 10, in points; 0 for pairs that are missing."""

AFTER = {
    SeedStage.BLENDING: SeedStage.HOLDING,
    SeedStage.PRUNED: SeedStage.EMBARGOED,
    SeedStage.EMBARGOED: SeedStage.RESETTING,
    SeedStage.RESETTING: SeedStage.DORMANT,
}


class GrowthMDP:
    """One row whose seeds are worth exactly what ``gains`` says, known with a standard error of ``se``."""

    def __init__(self, view: EnvView, gains: Gains, se: float = 0.01) -> None:
        self.view, self.gains, self.se = view, gains, se
        self.decisions: list[tuple[EnvView, Decision]] = []

    def play(self, policy: EnvPolicy) -> EnvView:
        """Run the whole episode; every decision is checked to be legal and to state a reason."""
        policy.reset([EnvSpec(self.view.env_id, self.view.episode, seed=0, max_epochs=self.view.max_epochs)])
        while self.view.epoch < self.view.max_epochs:
            (decision,) = policy.decide([self.view])
            assert why_illegal(self.view, decision.action) is None
            assert decision.reason
            self.decisions.append((self.view, decision))
            self._apply(decision)
            self._pass_an_epoch()
        return self.view

    def done(self, op: Op) -> list[tuple[int, str | None, str | None]]:
        """(epoch, slot, blueprint) of every action ``op``."""
        return [(view.epoch, d.action.slot, d.action.blueprint) for view, d in self.decisions if d.action.op is op]

    def _apply(self, decision: Decision) -> None:
        action, view = decision.action, self.view
        outcome = ActionOutcome(action, success=True)
        self.view = replace(view, last_outcome=outcome)
        slot = next((slot for slot in view.slots if slot.slot_id == action.slot), None)
        if slot is None:
            return
        if action.op is Op.GERMINATE:
            assert action.blueprint is not None
            size = view.blueprint_parameters[slot.slot_id][action.blueprint]
            self._set(SlotView(slot.slot_id, SeedStage.GERMINATED, "s", action.blueprint, parameters=size))
        elif action.op is Op.ADVANCE:
            self._set(replace(slot, stage=SeedStage.BLENDING, alpha=1.0, epochs_in_stage=0))
        elif action.op is Op.FOSSILIZE:
            self._set(replace(slot, stage=SeedStage.FOSSILIZED, epochs_in_stage=0))
            self._count("fossilized", slot.blueprint)
        elif action.op is Op.PRUNE:
            self._set(SlotView(slot.slot_id, SeedStage.PRUNED))
            self._count("pruned", slot.blueprint)

    def _pass_an_epoch(self) -> None:
        epoch = self.view.epoch + 1
        loss = 1.0 + 1.0 / epoch - sum(self._worth(slot) for slot in self.view.slots if slot.alpha > 0)
        history = (*self.view.loss_history, loss)
        self.view = replace(self.view, epoch=epoch, loss=loss, metric=100 - 10 * loss, loss_history=history)
        for slot in self.view.slots:
            self._set(self._aged(slot, epoch))

    def _aged(self, slot: SlotView, epoch: int) -> SlotView:
        if slot.live:
            gain = measured(self._worth(slot), self.se, epoch)
            points = measured(10 * self._worth(slot), 10 * self.se, epoch)
            facts = (
                {"removal_cost": points, "removal_cost_loss": gain}
                if slot.alpha > 0
                else {"probe_gain": points, "probe_gain_loss": gain}
            )
            slot = replace(
                slot,
                gradient_ratio=Fact(1.0, epoch),
                gradient_health=Fact(1.0, epoch),
                isolation_violations=0,
                age_epochs=slot.age_epochs + 1,
                **facts,  # type: ignore[arg-type]
            )
        if slot.stage is SeedStage.GERMINATED:
            return replace(slot, stage=SeedStage.TRAINING, epochs_in_stage=1)
        if slot.stage in AFTER:
            return replace(slot, stage=AFTER[slot.stage], epochs_in_stage=0)
        return replace(slot, epochs_in_stage=slot.epochs_in_stage + 1)

    def _worth(self, slot: SlotView) -> float:
        return self.gains.get((slot.slot_id, slot.blueprint or ""), 0.0)

    def _set(self, slot: SlotView) -> None:
        self.view = replace(
            self.view, slots=tuple(slot if old.slot_id == slot.slot_id else old for old in self.view.slots)
        )

    def _count(self, what: str, blueprint: str | None) -> None:
        assert blueprint is not None
        counts = dict(getattr(self.view, what))
        counts[blueprint] = counts.get(blueprint, 0) + 1
        self.view = replace(self.view, **{what: counts})


def everything_helps(**fields: object) -> GrowthMDP:
    """Three slots in which larger seeds are worth more."""
    view = row_view(epoch=0, **fields)
    gains = {(s.slot_id, name): 0.1 + size / 3000 for s in view.slots for name, size in PARAMETERS.items()}
    return GrowthMDP(view, gains)
