"""Tables that were never played: what a sequence is worth is decided by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from esper.bench.growtable.host import TableHost
from esper.bench.growtable.record import Ending, Record, row_of, stacked
from esper.bench.growtable.sequences import Choice, Choices
from esper.bench.growtable.worlds import BLUEPRINTS, MAX_SEEDS, SLOTS, WORLDS, WorldFacts, WorldSpec
from esper.leyline import WAIT, ActionOutcome, EnvView, Fact, Paired, SeedStage, SlotView

DIGITS = WORLDS["digits"]
FACTS = WorldFacts(490, {name: DIGITS.cost(name) for name in BLUEPRINTS}, 397)
A, B, C = Choice(0, "block0", "conv5"), Choice(2, "block1", "norm"), Choice(4, "block2", "conv3")
FEW: tuple[Choices, ...] = ((), (A,), (B,), (C,), (A, B), (B, C))

Worth = Callable[[Choices, int], tuple[float, float]]
"""``(sequence, number of the host) -> final validation and test accuracy``."""


def better_with_more(choices: Choices, number: int) -> tuple[float, float]:
    score = 40.0 + 10.0 * len(choices) + number
    return score, score + 1.0


def made_up_host(
    number: int, sequences: Iterable[Choices] = FEW, worth: Worth = better_with_more, world: WorldSpec = DIGITS
) -> TableHost:
    """A host on which seeds stay in TRAINING for ever and are kept all the same."""
    return TableHost(world, FACTS, number, {choices: _record(choices, number, worth, world) for choices in sequences})


def _record(choices: Choices, number: int, worth: Worth, world: WorldSpec) -> Record:
    validation, test = worth(choices, number)
    by_time = {choice.epoch: choice for choice in choices}
    rows, metrics = [row_of(_view(world, 0, (), [], None), None)], []
    for epoch in range(1, world.epochs + 1):
        choice = by_time.get(epoch - 1)
        action = WAIT if choice is None else choice.action
        grown = tuple(each for each in choices if each.epoch < epoch)
        # what two sequences have in common they must show alike
        metrics.append(10.0 + epoch + len(grown))
        rows.append(row_of(_view(world, epoch, grown, metrics, ActionOutcome(action, True)), action))
    kept = sum(FACTS.blueprint_parameters[choice.blueprint] for choice in choices)
    return Record(stacked(rows), 9.5, Ending(validation, test, 0.5, 1000 * (1 + len(choices)), kept))


def _view(world: WorldSpec, epoch: int, grown: Choices, metrics: list[float], outcome: ActionOutcome | None) -> EnvView:
    held = {choice.slot: choice for choice in grown}
    slots = tuple(_slot(name, held.get(name), epoch) for name in SLOTS)
    metric = metrics[-1] if metrics else None
    return EnvView(
        env_id=0,
        episode=0,
        epoch=epoch,
        max_epochs=world.epochs,
        slots=slots,
        blueprints=BLUEPRINTS,
        blueprint_parameters={slot: dict(FACTS.blueprint_parameters) for slot in SLOTS},
        host_parameters=FACTS.host_parameters,
        metric=metric,
        loss=None if metric is None else 1 / metric,
        train_loss=None if metric is None else 2 / metric,
        metric_history=tuple(metrics),
        loss_history=tuple(1 / value for value in metrics),
        max_seeds=MAX_SEEDS,
        last_outcome=outcome,
    )


def _slot(name: str, choice: Choice | None, epoch: int) -> SlotView:
    if choice is None:
        return SlotView(name)
    return SlotView(
        slot_id=name,
        stage=SeedStage.TRAINING,
        seed_id=name,
        blueprint=choice.blueprint,
        alpha_target=1.0,
        parameters=FACTS.blueprint_parameters[choice.blueprint],
        epochs_in_stage=epoch - choice.epoch,
        age_epochs=epoch - choice.epoch,
        metric_at_germination=10.0 + choice.epoch if choice.epoch else None,
        gradient_ratio=Fact(float("inf"), epoch),
        gradient_health=Fact(0.75, epoch - 1),
        probe_gain=Fact(Paired(1.5, 0.25, FACTS.validation_examples), epoch),
        probe_gain_loss=Fact(Paired(float("nan"), 0.5, FACTS.validation_examples), epoch),
        isolation_violations=0,
        blocked_by=("blocked",),
    )
