"""Counterfactuals of one env: which alpha configurations to evaluate, and what the answers say of each slot.

Every figure is a difference to the env as it is, paired over the validation examples. *Removal cost* is what the metric
loses when a slot's alpha is set to 0; it is not a causal gain, which needs a control run of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

from esper.leyline import AlphaConfig, EnvView, EvalResult, Metric, Paired, SeedStage, SlotFacts

EXACT_SHAPLEY_LIMIT = 4
"""Exact Shapley values take 2^k evaluations; above this many live slots they are not computed."""

_AS_IS: AlphaConfig = {}


@dataclass(frozen=True, slots=True)
class CounterfactualPlan:
    """Configurations to evaluate for one env. The first is the env as it is."""

    configs: tuple[AlphaConfig, ...]
    blended: tuple[str, ...]
    """Slots with alpha above 0, in network order."""
    probing: tuple[str, ...]
    """Slots whose seed learns behind the host."""
    shapley: bool


@dataclass(frozen=True, slots=True)
class Readout:
    """What the evaluation of a plan says."""

    metric: float
    loss: float
    facts: dict[str, SlotFacts]
    all_off_metric: float | None
    all_off_loss: float | None
    shapley: dict[str, float]
    """slot -> Shapley value of the metric; empty when not computed."""
    interaction: float | None
    """All-off cost minus the sum of single removal costs; needs two blended slots."""


def plan(view: EnvView, *, shapley: bool = False) -> CounterfactualPlan:
    """The configurations of an env: leave-one-out, all-off, probes, and all subsets for exact Shapley values."""
    blended = tuple(s.slot_id for s in view.slots if s.live and s.alpha > 0.0)
    probing = tuple(s.slot_id for s in view.slots if s.stage is SeedStage.TRAINING and s.alpha == 0.0)
    exact = shapley and 2 <= len(blended) <= EXACT_SHAPLEY_LIMIT
    sizes = range(1, len(blended) + 1) if exact else sorted({1, len(blended)} - {0}) if blended else []
    off = [{slot: 0.0 for slot in subset} for size in sizes for subset in combinations(blended, size)]
    on = [{slot: 1.0} for slot in probing]
    return CounterfactualPlan((_AS_IS, *off, *on), blended, probing, exact)


def read(plan: CounterfactualPlan, result: EvalResult, env: int, metric: Metric) -> Readout:
    """Turn env ``env`` of an evaluation into facts. Differences are positive when the seed helps."""
    sign = 1.0 if metric.higher_is_better else -1.0
    index = {frozenset(config.items()): i for i, config in enumerate(plan.configs)}

    def paired(config: AlphaConfig, direction: float) -> tuple[Paired, Paired]:
        i = index[frozenset(config.items())]
        gain = direction * sign * (result.metric[env, i] - result.metric[env, 0])
        gain_loss = -direction * (result.loss[env, i] - result.loss[env, 0])
        return (
            Paired(float(gain), float(result.metric_se[env, i]), result.paired),
            Paired(float(gain_loss), float(result.loss_se[env, i]), result.paired),
        )

    facts: dict[str, SlotFacts] = {}
    for slot in plan.blended:
        cost, cost_loss = paired({slot: 0.0}, -1.0)
        facts[slot] = SlotFacts(removal_cost=cost, removal_cost_loss=cost_loss)
    for slot in plan.probing:
        gain, gain_loss = paired({slot: 1.0}, 1.0)
        facts[slot] = SlotFacts(probe_gain=gain, probe_gain_loss=gain_loss)
    all_off = index.get(frozenset((slot, 0.0) for slot in plan.blended)) if plan.blended else None
    worth = {
        frozenset(plan.blended) - {slot for slot, _ in off}: float(result.metric[env, i])
        for off, i in index.items()
        if all(alpha == 0.0 for _, alpha in off)
    }
    interaction = None
    if all_off is not None and len(plan.blended) >= 2:
        whole = sign * float(result.metric[env, 0] - result.metric[env, all_off])
        interaction = whole - sum(fact.removal_cost.value for fact in facts.values() if fact.removal_cost is not None)
    return Readout(
        metric=float(result.metric[env, 0]),
        loss=float(result.loss[env, 0]),
        facts=facts,
        all_off_metric=None if all_off is None else float(result.metric[env, all_off]),
        all_off_loss=None if all_off is None else float(result.loss[env, all_off]),
        shapley={s: sign * v for s, v in shapley_values(plan.blended, worth).items()} if plan.shapley else {},
        interaction=interaction,
    )


def shapley_values(players: Sequence[str], worth: Mapping[frozenset[str], float]) -> dict[str, float]:
    """Exact Shapley values: phi_i = sum over S without i of |S|! (n-|S|-1)! / n! * (v(S + i) - v(S)).

    ``worth`` maps every subset of ``players`` to its value. Shapley (1953).
    """
    n = len(players)
    values: dict[str, float] = {}
    for player in players:
        others = [p for p in players if p != player]
        value = 0.0
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for subset in map(frozenset, combinations(others, size)):
                value += weight * (worth[subset | {player}] - worth[subset])
        values[player] = value
    return values
