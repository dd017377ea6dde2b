"""Counterfactuals of one env: which alpha configurations to evaluate, and what the answers say of each slot.

Every figure is a difference to the env as it is, paired over the validation examples. *Removal cost* is what the metric
loses when a slot's alpha is set to 0; it is not a causal gain, which needs a control run of its own.

Validation is read for a seed while its worth is open and its gate could pass, and no further than it takes to know. Of
a seed that the host depends on, whose evidence is getting old, a first look is taken, for whoever means to prune it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import factorial
from typing import Final

from esper.kasmina.evidence import Shown, Standing, worth
from esper.leyline import (
    AlphaConfig,
    EnvView,
    EvalResult,
    GateThresholds,
    Metric,
    Paired,
    SeedStage,
    SlotFacts,
    SlotView,
)

EXACT_SHAPLEY_LIMIT = 4
"""Exact Shapley values take 2^k evaluations; above this many live slots they are not computed."""

HOPELESS: Final = 1.282
"""Standard errors above what was found so far with which a gain that would still not be proven by the end of the split
is given up for this epoch: nine true gains of ten are found below that. Giving up proves nothing falsely."""

_AS_IS: AlphaConfig = {}


@dataclass(frozen=True, slots=True)
class Question:
    """What a configuration is read for: the worth of a slot's seed."""

    slot: str
    off: bool
    """Whether the seed is taken away in it; else it is switched on."""
    shown: Shown | None
    """What its gate will see besides; ``None`` where a first look is enough."""

    def facts(self, metric: Paired, loss: Paired, of: Metric) -> SlotFacts:
        """Of differences to the env as it is; positive when the seed helps."""
        sign = (1.0 if of.higher_is_better else -1.0) * (-1.0 if self.off else 1.0)
        gain = replace(metric, value=sign * metric.value)
        gain_loss = replace(loss, value=loss.value if self.off else -loss.value)
        if self.off:
            return SlotFacts(removal_cost=gain, removal_cost_loss=gain_loss)
        return SlotFacts(probe_gain=gain, probe_gain_loss=gain_loss)

    def answered(self, facts: SlotFacts, thresholds: GateThresholds) -> bool:
        """Whether reading on would tell nothing that matters in this epoch."""
        if self.shown is None:
            return True
        shown = self.shown.measured(facts)
        gain = shown.of_stage(shown.gain)
        if gain is not None and not shown.far(thresholds, 1.0):
            return False  # the sign alone is asked for, and that of a part is not certain
        if gain is None or worth(shown, thresholds).standing is not Standing.OPEN:
            return True
        if gain.read is None:
            return False
        asked = shown.far(thresholds, 1.0) * gain.se * math.sqrt(gain.read)
        return gain.value + HOPELESS * gain.se <= asked


@dataclass(frozen=True, slots=True)
class CounterfactualPlan:
    """Configurations to evaluate for one env. The first is the env as it is."""

    configs: tuple[AlphaConfig, ...] = (_AS_IS,)
    questions: tuple[Question | None, ...] = (None,)
    """By configuration; ``None`` where none is asked. Such a one is read as a whole if it is of the ``whole`` ones."""
    blended: tuple[str, ...] = ()
    """Slots with alpha above 0, in network order."""
    shapley: bool = False
    whole: frozenset[int] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)
    """live slot -> why nothing is read of it"""

    def settled(self, number: int, metric: Paired, loss: Paired, of: Metric, thresholds: GateThresholds) -> bool:
        """Whether a configuration need be read no further."""
        question = self.questions[number]
        if number in self.whole:
            return False
        return question is None or question.answered(question.facts(metric, loss, of), thresholds)


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
    """All-off cost minus the sum of single removal costs; needs two blended slots and all of these costs."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """live slot -> why nothing was read of it"""


@dataclass(frozen=True, slots=True)
class Need:
    """What is read besides what gates go by."""

    shapley: bool = False
    """Exact Shapley values, by a first look."""
    all_off: bool = False
    """The env without any seed, read as a whole: rewards go by it."""
    oldest: int | None = None
    """Epochs after which what removing a seed costs is looked at again, where the host depends on it..."""
    dependence: float = 0.5
    """...which it does above this alpha."""


def plan(view: EnvView, need: Need | None = None) -> CounterfactualPlan:
    """The configurations of an env whose epoch was just trained: one for each seed whose worth is asked, and what else
    is needed."""
    need = need or Need()
    blended = tuple(s.slot_id for s in view.slots if s.live and s.alpha > 0.0)
    exact = need.shapley and 2 <= len(blended) <= EXACT_SHAPLEY_LIMIT
    questions: dict[frozenset[str], Question] = {}
    unread: dict[str, str] = {}
    for slot in view.slots:
        if slot.live:
            found = _question(view, slot, need)
            if isinstance(found, Question):
                questions[frozenset({slot.slot_id})] = found
            else:
                unread[slot.slot_id] = found
    all_off = frozenset(blended)
    sizes = range(1, len(blended) + 1) if exact else sorted({1, len(blended)} if blended else {})
    subsets = (frozenset(each) for size in sizes for each in combinations(blended, size))
    asked = [s for s in subsets if exact or s in questions or (need.all_off and s == all_off)]
    configs = [dict.fromkeys((slot for slot in blended if slot in subset), 0.0) for subset in asked]
    probes = [each for each in questions.values() if not each.off]
    whole = [1 + i for i, subset in enumerate(asked) if need.all_off and subset == all_off]
    return CounterfactualPlan(
        configs=(_AS_IS, *configs, *({each.slot: 1.0} for each in probes)),
        questions=(None, *(questions.get(subset) for subset in asked), *probes),
        blended=blended,
        shapley=exact,
        whole=frozenset(whole),
        unread=unread,
    )


def _question(view: EnvView, slot: SlotView, need: Need) -> Question | str:
    """What is asked of a living seed in this epoch, or why nothing is."""
    if slot.stage is SeedStage.FOSSILIZED:
        return "kept"
    # the stage's count goes up once the epoch has been measured, and then gates are asked
    shown = replace(Shown.of_view(slot), epochs_in_stage=slot.epochs_in_stage + 1)
    least = view.gates.least_epochs(slot.stage)
    if least is not None and shown.epochs_in_stage >= least:
        proven = view.gates.ask_for_gain and worth(shown, view.gates).standing is Standing.PROVEN
        return "proven" if proven else Question(slot.slot_id, slot.alpha > 0.0, shown)
    if slot.alpha <= need.dependence or need.oldest is None:
        return "too_early"
    cost = slot.removal_cost
    # the view is of before the epoch that was just trained
    young = cost is not None and cost.epoch is not None and view.epoch + 1 - cost.epoch < need.oldest
    return "too_early" if young else Question(slot.slot_id, True, None)


def read(plan: CounterfactualPlan, result: EvalResult, env: int, metric: Metric) -> Readout:
    """Turn env ``env`` of an evaluation into facts. Differences are positive when the seed helps."""
    sign = 1.0 if metric.higher_is_better else -1.0
    index = {frozenset(config.items()): i for i, config in enumerate(plan.configs)}
    facts = {
        question.slot: question.facts(
            _paired(result, "metric", env, number), _paired(result, "loss", env, number), metric
        )
        for number, question in enumerate(plan.questions)
        if question is not None
    }
    all_off = index.get(frozenset((slot, 0.0) for slot in plan.blended)) if plan.blended else None
    worth_of = {
        frozenset(plan.blended) - {slot for slot, _ in off}: float(result.metric[env, i])
        for off, i in index.items()
        if all(alpha == 0.0 for _, alpha in off)
    }
    interaction, alone = None, [index.get(frozenset({(slot, 0.0)})) for slot in plan.blended]
    if all_off is not None and len(plan.blended) >= 2 and None not in alone:
        costs = [sign * float(result.metric[env, 0] - result.metric[env, i]) for i in (all_off, *alone)]
        interaction = costs[0] - sum(costs[1:])
    return Readout(
        metric=float(result.metric[env, 0]),
        loss=float(result.loss[env, 0]),
        facts=facts,
        all_off_metric=None if all_off is None else float(result.metric[env, all_off]),
        all_off_loss=None if all_off is None else float(result.loss[env, all_off]),
        shapley={s: sign * v for s, v in shapley_values(plan.blended, worth_of).items()} if plan.shapley else {},
        interaction=interaction,
        unread=plan.unread,
    )


def _paired(result: EvalResult, what: str, env: int, number: int) -> Paired:
    """Difference of a configuration to the first one, as it was measured."""
    values, read = getattr(result, what)[env], float(result.read[env, number])
    return Paired(
        float(values[number] - values[0]),
        float(getattr(result, f"{what}_se")[env, number]),
        int(result.paired[env, number]),
        None if math.isnan(read) else read,
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
