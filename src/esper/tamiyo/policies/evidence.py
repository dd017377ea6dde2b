"""Whether a seed's measured evidence would carry it through its next gate, so that policies ask when it can succeed.

The gates themselves decide (:mod:`esper.kasmina.gates`); these functions foresee them from a view, by the very
definition that gates have (:mod:`esper.kasmina.evidence`) and the thresholds that the view says they have.
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.kasmina import evidence
from esper.kasmina.evidence import Shown, Worth, in_words
from esper.leyline import Decision, EnvView, Fact, FactoredAction, GateCheck, Op, Paired, SeedStage, SlotView


@dataclass(frozen=True, slots=True)
class SeedVerdict:
    """``against`` names what stands in the way, ``None`` when nothing does; ``evidence`` is what it rests on."""

    against: str | None
    evidence: tuple[tuple[str, float], ...]


def before_blending(view: EnvView, slot: SlotView) -> SeedVerdict:
    """Foresee G2 for a seed in TRAINING."""
    shown = Shown.of_view(slot)
    figures = {
        shown.gain: getattr(slot, shown.gain),
        "gradient_ratio": slot.gradient_ratio,
        "gradient_health": slot.gradient_health,
    }
    return SeedVerdict(_first_failed(evidence.before_blending(shown, view.gates)), _figures(figures))


def before_fossilizing(view: EnvView, slot: SlotView) -> SeedVerdict:
    """Foresee G5 for a seed in HOLDING."""
    figures = {name: getattr(slot, name) for name in ("removal_cost", "removal_cost_loss", "gradient_health")}
    checks = evidence.before_fossilizing(Shown.of_view(slot), view.gates)
    return SeedVerdict(_first_failed(checks), _figures(figures))


def worth(view: EnvView, slot: SlotView) -> Worth:
    """What the evidence says of a seed's worth so far."""
    return evidence.worth(Shown.of_view(slot), view.gates)


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
    """What the seed is worth in loss, and the fact's name."""
    name = Shown.of_view(slot).gain
    return getattr(slot, name), name


def _seed(slot: SlotView) -> str:
    return f"{slot.blueprint} in {slot.slot_id}"


def _first_failed(checks: list[GateCheck]) -> str | None:
    return next((in_words(check) for check in checks if not check.passed), None)


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
