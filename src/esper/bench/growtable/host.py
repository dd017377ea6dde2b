"""A tabulated host: a tree of states, from which an episode walks along what was played.

Where the table knows sequences that have done the same so far, they are in the same state, so any of them tells it.
Bringing a seed through its gates is part of every sequence; what a policy is free to choose is what germinates, where
and when. What no sequence does next is masked; asked for all the same, it becomes what the sequences do without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from esper.bench.growtable.record import FACTS, NONE, PAIRED, Arrays, Record, action_at
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.worlds import BLUEPRINTS, SLOTS, WorldFacts, WorldSpec
from esper.leyline import (
    WAIT,
    ActionOutcome,
    ActionSpace,
    EnvView,
    Fact,
    FactoredAction,
    GateThresholds,
    Metric,
    Op,
    Paired,
    Promise,
    SeedStage,
    SlotView,
)
from esper.tamiyo.masks import Availability
from esper.tasks.scoring import accuracy_metric

SPACE = ActionSpace(SLOTS, BLUEPRINTS)
"""The action space of every world."""
METRIC: Final[Metric] = accuracy_metric(chance=10.0)
"""What every world is scored by."""
GATES: Final = GateThresholds(metric=METRIC)
"""What the gates of every world ask."""


@dataclass
class TableHost:
    """What the table holds of one host: every sequence that was played on it."""

    world: WorldSpec
    facts: WorldFacts
    number: int
    records: Mapping[Choices, Record]

    @cached_property
    def root(self) -> Node:
        """The state before the first epoch."""
        return Node(self, tuple(sorted(self.records)), 0)


class Node:
    """A state of a host that was tabulated: what was seen, and what the table holds next. Made once, when visited."""

    def __init__(self, host: TableHost, sequences: tuple[Choices, ...], epoch: int) -> None:
        self.host, self.epoch = host, epoch
        self.sequences = sequences
        """Those that have led here."""

    @property
    def record(self) -> Record:
        """A sequence that led here; at the end, what became of it."""
        return self.host.records[self.sequences[0]]

    @property
    def ended(self) -> bool:
        """Whether the last epoch is over."""
        return self.epoch == self.host.world.epochs

    @cached_property
    def view(self) -> EnvView:
        """What a policy sees."""
        return view_at(self.host, self.record.steps, self.epoch)

    @cached_property
    def held(self) -> dict[FactoredAction, Node]:
        """What some sequence does next, and where it leads."""
        found: dict[FactoredAction, list[Choices]] = {}
        for choices in () if self.ended else self.sequences:
            found.setdefault(action_at(self.host.records[choices].steps, self.epoch + 1), []).append(choices)
        return {action: Node(self.host, tuple(those), self.epoch + 1) for action, those in found.items()}

    @property
    def default(self) -> FactoredAction:
        """What the sequences do next that let nothing germinate."""
        return next(action for action in self.held if action.op is not Op.GERMINATE)

    def after(self, action: FactoredAction) -> tuple[FactoredAction, Node]:
        """The action that is taken when ``action`` is asked for, and where it leads."""
        taken = action if action in self.held else self.default
        return taken, self.held[taken]

    @cached_property
    def availability(self) -> Availability:
        """What is held, as masks."""
        masks = Availability(
            op=np.zeros(len(Op), dtype=bool),
            slot=np.zeros((len(Op), len(SPACE.slots)), dtype=bool),
            blueprint=np.zeros((len(SPACE.slots), len(SPACE.blueprints)), dtype=bool),
            blend=np.zeros(len(SPACE.blends), dtype=bool),
            alpha_target=np.zeros((len(SPACE.slots), len(SPACE.alpha_targets)), dtype=bool),
            tempo=np.zeros(len(SPACE.tempos), dtype=bool),
        )
        for action in self.held or (WAIT,):
            masks.op[action.op] = True
            if action.slot is None:
                continue
            slot = SPACE.slots.index(action.slot)
            masks.slot[action.op, slot] = True
            if action.blueprint is not None and action.blend is not None and action.tempo is not None:
                masks.blueprint[slot, SPACE.blueprints.index(action.blueprint)] = True
                masks.alpha_target[slot] = [target == action.alpha_target for target in SPACE.alpha_targets]
                masks.blend[SPACE.blends.index(action.blend)] = True
                masks.tempo[SPACE.tempos.index(action.tempo)] = True
        for head in (masks.blend, masks.tempo):
            # ignored where nothing may germinate, and a mask must allow something
            head[:] = head if head.any() else True
        return masks


def view_at(host: TableHost, steps: Arrays, epoch: int) -> EnvView:
    """The view that was recorded after ``epoch`` epochs.

    ``seed_id`` and the names of failed checks are not kept: a seed is named by its slot, and a blocked one says so.
    """
    world, facts = host.world, host.facts
    measured = epoch > 0
    outcome = ActionOutcome(action_at(steps, epoch), bool(steps["success"][epoch])) if measured else None
    return EnvView(
        env_id=0,
        episode=0,
        epoch=epoch,
        max_epochs=world.epochs,
        slots=tuple(_slot_at(host, steps, epoch, i) for i in range(len(SLOTS))),
        blueprints=BLUEPRINTS,
        blueprint_parameters={slot: dict(facts.blueprint_parameters) for slot in SLOTS},
        host_parameters=facts.host_parameters,
        metric=float(steps["metric"][epoch]) if measured else None,
        loss=float(steps["loss"][epoch]) if measured else None,
        train_loss=float(steps["train_loss"][epoch]) if measured else None,
        metric_history=tuple(steps["metric"][1 : epoch + 1].tolist()),
        loss_history=tuple(steps["loss"][1 : epoch + 1].tolist()),
        gates=GATES,
        parameter_budget=world.parameters,
        max_seeds=world.max_seeds,
        vetoed=frozenset(slot for slot, flag in zip(SLOTS, steps["vetoed"][epoch], strict=True) if flag),
        last_outcome=outcome,
        pruned=_counts(steps["pruned"][epoch]),
        fossilized=_counts(steps["fossilized"][epoch]),
    )


def _counts(numbers: Sequence[int]) -> Counter[str]:
    return Counter({name: int(n) for name, n in zip(BLUEPRINTS, numbers, strict=True) if n})


def _slot_at(host: TableHost, steps: Arrays, epoch: int, i: int) -> SlotView:
    def read(name: str) -> Any:
        return steps[name][epoch, i]

    def known(name: str) -> float | None:
        value = float(read(name))
        return None if np.isnan(value) else value

    blueprint = None if read("blueprint") == NONE else BLUEPRINTS[read("blueprint")]
    stage = SeedStage(int(read("stage")))
    slot = SlotView(slot_id=SLOTS[i], stage=stage, promise=_promises(steps, epoch, i))
    if blueprint is None:
        return slot
    return replace(
        slot,
        seed_id=SLOTS[i],
        blueprint=blueprint,
        alpha=float(read("alpha")),
        alpha_target=known("alpha_target"),
        parameters=host.facts.blueprint_parameters[blueprint] if slot.live else 0,
        epochs_in_stage=int(read("epochs_in_stage")),
        age_epochs=int(read("age")),
        metric_at_germination=known("metric_at_germination"),
        isolation_violations=None if read("violations") < 0 else int(read("violations")),
        blocked_by=("blocked",) if read("blocked") else (),
        **_facts(host, steps, epoch, i),
    )


def _promises(steps: Arrays, epoch: int, i: int) -> dict[str, Promise]:
    found = {}
    for j, blueprint in enumerate(BLUEPRINTS):
        # an audition makes a step or promises nothing
        if taken := int(steps["promise_steps"][epoch, i, j]):
            age = int(steps["promise_age"][epoch, i, j])
            value, macs = float(steps["promise"][epoch, i, j]), int(steps["promise_macs"][epoch, i, j])
            found[blueprint] = Promise(value, taken, macs, None if age == NONE else epoch - age)
    return found


def _facts(host: TableHost, steps: Arrays, epoch: int, i: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for j, name in enumerate(FACTS):
        age = int(steps["fact_age"][epoch, i, j])
        if age == NONE:
            continue
        value: float | Paired = float(steps["fact"][epoch, i, j])
        if name in PAIRED:
            error = float(steps["fact_se"][epoch, i, PAIRED.index(name)])
            value = Paired(float(steps["fact"][epoch, i, j]), error, host.facts.validation_examples)
        found[name] = Fact(value, epoch - age)
    return found
