"""Growth by rules on measured evidence. It names no task, slot or blueprint.

An audition costs compute but cannot harm: a seed in TRAINING leaves the host's output as it is. So the heuristic
auditions early, since growth pays most while learning rates are high, and commits only on evidence:

- *what*: the largest blueprint that fits, or a much cheaper one, corrected by what was kept and what was pruned in
  this episode (a blueprint that failed goes behind every one that did not, one that was kept goes before);
- *where*: the first free slot in network order, since auditions favour late slots, which learn fastest against a host
  held constant (``growth.md`` section 8), while seeds near the input prove best;
- *blend* once the probe gain in loss is positive with confidence and the gradients are sound;
- *keep* once removal would cost loss with confidence, and the metric does not rule out that it is worth it;
- *prune* what is harmful or not finite, and what could not prove itself in its time; the next blueprint takes its turn,
  and one that has only failed comes back only when learning has stalled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from esper.kasmina.evidence import Standing
from esper.leyline import (
    WAIT,
    Blend,
    Decision,
    EnvView,
    FactoredAction,
    Op,
    Paired,
    SeedStage,
    SlotView,
)
from esper.tamiyo.policies.base import EnvPolicy
from esper.tamiyo.policies.evidence import bring_through, foreseen, gain, just_failed, worth
from esper.tolaria.legality import legal_blueprints, legal_slots

FRUGAL_SIZE: Final = 1 / 3
""":attr:`HeuristicConfig.first_size` of those who pay by the multiply-accumulate."""


@dataclass(frozen=True, slots=True)
class HeuristicConfig:
    """When the heuristic acts. Lengths in epochs."""

    first_size: float = 1.0
    """The largest blueprint of at most this share of the largest one's parameters has its turn first. The largest of
    all is worth most for an epoch, one of a third for a multiply-accumulate."""
    first_epoch: int = 1
    """Epochs before the first germination; 1 lets the host's level be measured first."""
    patience: int = 5
    """Epochs in TRAINING, or in HOLDING, beyond the gate's own minimum in which a seed may prove itself."""
    tempo: int = 1
    """Length of the alpha ramp."""
    blend: Blend = Blend.LINEAR
    plateau_epochs: int = 3
    plateau_change: float = 0.02
    """Learning has stalled when the loss fell by less than this share over ``plateau_epochs``."""


class HeuristicPolicy(EnvPolicy):
    """One decision an epoch, the most urgent first: harm, blending, keeping what is proven, growth, failure."""

    name = "heuristic"

    def __init__(self, config: HeuristicConfig | None = None) -> None:
        self.config = config or HeuristicConfig()

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """Decide from the view alone; nothing is remembered between epochs."""
        return (
            self.before_growth(view)
            or _first(view, self._grow)
            or self.after_growth(view)
            or Decision(WAIT, "every seed is learning, settled or gathering evidence, and no growth is due")
        )

    def before_growth(self, view: EnvView) -> Decision | None:
        """What goes before growth: a seed that does harm is taken out, one that is ready is blended in."""
        return _first(view, self._remove_harm, self._blend)

    def after_growth(self, view: EnvView) -> Decision | None:
        """What waits for growth: a seed that is proven is kept, one that had its time is taken out."""
        return _first(view, self._keep, self._remove_failure)

    def _remove_harm(self, view: EnvView) -> Iterator[Decision]:
        """Seeds whose evidence is not finite, or without which the host would certainly be better."""
        for slot in view.slots:
            found = worth(view, slot)
            if found.standing is Standing.REFUTED:
                fact, name = gain(slot)
                yield _prune(slot, found.reason, name, None if fact is None else fact.value)

    def _blend(self, view: EnvView) -> Iterator[Decision]:
        """Seeds behind the host that would pass G2, while there is time for G5: what is not kept is lost at the end."""
        time_to_hold = self.config.tempo + view.gates.min_holding_epochs
        if view.max_epochs - view.epoch > time_to_hold:
            yield from self._through(view, SeedStage.TRAINING)

    def _keep(self, view: EnvView) -> Iterator[Decision]:
        """Seeds in the host that would pass G5."""
        return self._through(view, SeedStage.HOLDING)

    def _through(self, view: EnvView, stage: SeedStage) -> Iterator[Decision]:
        for slot in view.slots:
            if slot.stage is stage and (decision := bring_through(view, slot)):
                yield decision

    def _remove_failure(self, view: EnvView) -> Iterator[Decision]:
        """Seeds that had their time and have proven nothing."""
        for slot in view.slots:
            least = view.gates.least_epochs(slot.stage)
            if least is not None and slot.epochs_in_stage >= least + self.config.patience:
                verdict, gate = foreseen(view, slot)
                against = verdict.against or ", ".join(slot.blocked_by) or "too few epochs are left to hold it"
                why = f"in {slot.epochs_in_stage} epochs of {slot.stage.name} it has not passed {gate}: {against}"
                yield Decision(_removal(slot), _of(slot, why), (*verdict.evidence, ("epochs", slot.epochs_in_stage)))

    def _grow(self, view: EnvView) -> Iterator[Decision]:
        """An audition of the most promising blueprint in each free slot, while there is time for it to prove itself."""
        if view.epoch < self.config.first_epoch or not self.has_time(view):
            return
        for slot in legal_slots(view, Op.GERMINATE):
            if (due := self.germination(view, slot)) is not None:
                yield due

    def has_time(self, view: EnvView) -> bool:
        """Whether what germinates now could be kept before the end."""
        return view.max_epochs - view.epoch >= view.gates.shortest_life(self.config.tempo)

    def germination(self, view: EnvView, slot: str) -> Decision | None:
        """What germinates in that free slot, where that is its turn; ``None`` where everything has failed and learning
        goes on.
        """
        blueprint = max(legal_blueprints(view, slot), key=lambda name: self._promise(view, slot, name))
        record, parameters = _record(view, blueprint), float(view.blueprint_parameters[slot][blueprint])
        reason, evidence = (
            "an audition cannot harm, and growth pays most early",
            ("epochs_left", float(view.max_epochs - view.epoch)),
        )
        if record < 0:
            fall = self._loss_fall(view)
            if fall is None or fall >= self.config.plateau_change:
                return None
            reason, evidence = "every blueprint has failed, but learning has stalled", ("loss_fall", fall)
        action = FactoredAction(Op.GERMINATE, slot, blueprint, self.config.blend, 1.0, self.config.tempo)
        return Decision(action, reason, (("kept_minus_pruned", record), ("parameters", parameters), evidence))

    def _promise(self, view: EnvView, slot: str, blueprint: str) -> tuple[float, float]:
        """What has worked goes first, what has failed last; among equals size decides."""
        sizes = view.blueprint_parameters[slot]
        ladder = sorted(sizes, key=sizes.__getitem__)
        steps = ladder.index(blueprint) - ladder.index(first_in_turn(sizes, self.config.first_size))
        # as many steps away, the larger one goes first
        return _record(view, blueprint), 0.5 * (steps > 0) - abs(steps)

    def _loss_fall(self, view: EnvView) -> float | None:
        """Relative fall of the validation loss over the last ``plateau_epochs``; ``None`` until there are as many."""
        history = view.loss_history
        if len(history) <= self.config.plateau_epochs:
            return None
        before = history[-1 - self.config.plateau_epochs]
        return (before - history[-1]) / abs(before) if before else 0.0


class FrugalPolicy(HeuristicPolicy):
    """The heuristic for those who pay by the multiply-accumulate: seeds of a third of the largest one's size first."""

    name = "frugal"

    def __init__(self, config: HeuristicConfig | None = None) -> None:
        super().__init__(replace(config or HeuristicConfig(), first_size=FRUGAL_SIZE))


def first_in_turn(sizes: Mapping[str, int], share: float) -> str:
    """The largest blueprint of at most ``share`` of the largest one's parameters, the smallest where there is none.

    ``sizes``: blueprint -> parameters.
    """
    ladder = sorted(sizes, key=sizes.__getitem__)
    limit = share * sizes[ladder[-1]]
    return ladder[max(0, sum(size <= limit for size in sizes.values()) - 1)]


def _first(view: EnvView, *rules: Callable[[EnvView], Iterator[Decision]]) -> Decision | None:
    """The first decision of ``rules`` in turn that was not refused last epoch, so that the rest gets its turn."""
    return next((each for rule in rules for each in rule(view) if not just_failed(view, each.action)), None)


def _record(view: EnvView, blueprint: str) -> float:
    """How often a blueprint was kept in this episode, less how often it was pruned."""
    return float(view.fossilized.get(blueprint, 0) - view.pruned.get(blueprint, 0))


def _prune(slot: SlotView, why: str, name: str, value: Paired | None) -> Decision:
    evidence = () if value is None else ((name, value.value), (f"{name}_se", value.se))
    return Decision(_removal(slot), _of(slot, why), (*evidence, ("epochs", slot.epochs_in_stage)))


def _removal(slot: SlotView) -> FactoredAction:
    return FactoredAction(Op.PRUNE, slot.slot_id)


def _of(slot: SlotView, why: str) -> str:
    return f"{slot.blueprint} in {slot.slot_id}: {why}"
