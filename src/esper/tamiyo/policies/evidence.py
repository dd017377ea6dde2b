"""Whether a seed's measured evidence would carry it through its next gate, so that policies ask when it can succeed.

The gates themselves decide (:mod:`esper.kasmina.gates`); these functions foresee them from a view, by the thresholds
that it says its gates have and the same comparisons. What was not measured speaks for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from esper.kasmina.gates import certain_gain, removal_checks
from esper.leyline import Decision, EnvView, Fact, FactoredAction, Op, Paired, SeedStage, SlotView

_COSTS: Final = {
    "removal_cost_loss_lower": "lower bound of the removal cost in loss",
    "removal_cost": "removal cost",
    "removal_cost_lower": "lower bound of the removal cost",
}
"""Checks of G5 in words."""


@dataclass(frozen=True, slots=True)
class SeedVerdict:
    """``against`` names what stands in the way, ``None`` when nothing does; ``evidence`` is what it rests on."""

    against: str | None
    evidence: tuple[tuple[str, float], ...]


def before_blending(view: EnvView, slot: SlotView) -> SeedVerdict:
    """Foresee G2 for a seed in TRAINING."""
    thresholds = view.gates
    fact, name = gain(slot)
    ratio, health = slot.gradient_ratio, slot.gradient_health
    checks = (
        ("epochs in training", _enough(slot.epochs_in_stage, thresholds.min_training_epochs)),
        (name, not thresholds.ask_for_gain or _certain(view, slot, fact)),
        ("gradient ratio", not slot.host_learns or _at_least(ratio, thresholds.min_gradient_ratio)),
        ("gradient health", _at_least(health, thresholds.min_gradient_health)),
        # none are measured where nothing is isolated: a graft may never be
        ("isolation", (slot.isolation_violations or 0) <= thresholds.max_isolation_violations),
    )
    return SeedVerdict(
        _first_failed(checks), _figures({name: fact, "gradient_ratio": ratio, "gradient_health": health})
    )


def before_fossilizing(view: EnvView, slot: SlotView) -> SeedVerdict:
    """Foresee G5 for a seed in HOLDING."""
    thresholds = view.gates
    cost, cost_loss, health = slot.removal_cost, slot.removal_cost_loss, slot.gradient_health
    asked = removal_checks(_of_this_stage(view, slot, cost), _of_this_stage(view, slot, cost_loss), thresholds)
    gains = tuple((_COSTS[check.id], check.passed) for check in asked)
    checks = (
        ("epochs in holding", _enough(slot.epochs_in_stage, thresholds.min_holding_epochs)),
        *(gains if thresholds.ask_for_gain else ()),
        ("gradient health", _at_least(health, thresholds.min_gradient_health)),
    )
    figures = {"removal_cost": cost, "removal_cost_loss": cost_loss, "gradient_health": health}
    return SeedVerdict(_first_failed(checks), _figures(figures))


def foreseen(view: EnvView, slot: SlotView) -> tuple[SeedVerdict, str]:
    """Verdict and name of the gate before a seed in TRAINING or HOLDING."""
    if slot.stage is SeedStage.TRAINING:
        return before_blending(view, slot), "G2"
    return before_fossilizing(view, slot), "G5"


def bring_through(view: EnvView, slot: SlotView) -> Decision | None:
    """Ask for the seed's next gate if its evidence would pass, ``None`` otherwise."""
    if slot.stage is SeedStage.TRAINING:
        verdict = before_blending(view, slot)
        if verdict.against is None:
            action = FactoredAction(Op.ADVANCE, slot.slot_id)
            return Decision(action, f"{_seed(slot)} lowers the loss behind the host: blend it in", verdict.evidence)
    elif slot.stage is SeedStage.HOLDING:
        verdict = before_fossilizing(view, slot)
        if verdict.against is None:
            action = FactoredAction(Op.FOSSILIZE, slot.slot_id)
            return Decision(action, f"the host would be worse without {_seed(slot)}: keep it", verdict.evidence)
    return None


def just_failed(view: EnvView, action: FactoredAction) -> bool:
    """Whether this very action was tried last epoch and did not succeed: a gate or the governor said no."""
    outcome = view.last_outcome
    return outcome is not None and not outcome.success and outcome.action == action


def gain(slot: SlotView) -> tuple[Fact[Paired] | None, str]:
    """What the seed is worth in loss: measured by switching it on while it is off, and off while it is on."""
    if slot.alpha > 0.0:
        return slot.removal_cost_loss, "removal_cost_loss"
    return slot.probe_gain_loss, "probe_gain_loss"


def _seed(slot: SlotView) -> str:
    return f"{slot.blueprint} in {slot.slot_id}"


def _enough(epochs: int, least: int) -> bool:
    return epochs >= least


def _at_least(fact: Fact[float] | None, least: float) -> bool:
    return fact is not None and fact.value >= least


def _of_this_stage(view: EnvView, slot: SlotView, fact: Fact[Paired] | None) -> Paired | None:
    """What was measured within the present stage: earlier evidence speaks of another alpha."""
    if fact is None or (fact.epoch is not None and view.epoch - fact.epoch > slot.epochs_in_stage):
        return None
    return fact.value


def _certain(view: EnvView, slot: SlotView, fact: Fact[Paired] | None) -> bool:
    """Whether the lower confidence bound is above 0 in a measurement made within the present stage."""
    return certain_gain("", _of_this_stage(view, slot, fact), view.gates).passed


def _first_failed(checks: tuple[tuple[str, bool], ...]) -> str | None:
    return next((name for name, passed in checks if not passed), None)


def _figures(facts: dict[str, Fact[Paired] | Fact[float] | None]) -> tuple[tuple[str, float], ...]:
    """The measured numbers among ``facts``, standard errors beside their estimates."""
    figures: list[tuple[str, float]] = []
    for name, fact in facts.items():
        if fact is None:
            continue
        if isinstance(fact.value, Paired):
            figures += [(name, fact.value.value), (f"{name}_se", fact.value.se)]
        else:
            figures.append((name, fact.value))
    return tuple(figures)
