"""What one played sequence leaves: arrays over its epochs from which every view of it can be told again.

``E`` epochs, ``S`` slots, ``P`` blueprints, ``F`` facts. Row 0 of every array is the state before the first epoch.
Absent is told apart from any number: 255 for indices, counts and ages, -1 for ``violations``, and NaN where NaN cannot
be measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from esper.bench.growtable.sequences import Choice
from esper.bench.growtable.worlds import BLUEPRINTS, SLOTS
from esper.leyline import EnvView, Fact, FactoredAction, Op, Paired, SlotView

Arrays = dict[str, npt.NDArray[Any]]

NONE: Final = 255
FACTS: Final = (
    "gradient_ratio",
    "gradient_health",
    "removal_cost",
    "removal_cost_loss",
    "probe_gain",
    "probe_gain_loss",
)
PAIRED: Final = FACTS[2:]
_S, _P, _F = len(SLOTS), len(BLUEPRINTS), len(FACTS)

COLUMNS: Final[Mapping[str, tuple[type[np.generic], tuple[int, ...]]]] = {
    "op": (np.uint8, ()),
    "op_slot": (np.uint8, ()),
    "op_blueprint": (np.uint8, ()),
    "success": (np.uint8, ()),
    "metric": (np.float32, ()),
    "loss": (np.float32, ()),
    "train_loss": (np.float32, ()),
    "pruned": (np.uint8, (_P,)),
    "fossilized": (np.uint8, (_P,)),
    "vetoed": (np.uint8, (_S,)),
    "stage": (np.uint8, (_S,)),
    "blueprint": (np.uint8, (_S,)),
    "alpha": (np.float32, (_S,)),
    "alpha_target": (np.float32, (_S,)),
    "epochs_in_stage": (np.uint8, (_S,)),
    "age": (np.uint8, (_S,)),
    "blocked": (np.uint8, (_S,)),
    "violations": (np.int16, (_S,)),
    "metric_at_germination": (np.float32, (_S,)),
    "fact": (np.float16, (_S, _F)),
    "fact_se": (np.float16, (_S, len(PAIRED))),
    "fact_age": (np.uint8, (_S, _F)),
    "promise": (np.float32, (_S, _P)),
    "promise_steps": (np.uint8, (_S, _P)),
    "promise_macs": (np.int64, (_S, _P)),
    "promise_age": (np.uint8, (_S, _P)),
}
"""Name -> type and shape of one epoch's entry. ``op*`` and ``success`` tell of the action that led to the epoch."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a sequence ended. Metrics in the task's unit."""

    validation_metric: float
    test_metric: float
    test_loss: float
    total_macs: int
    kept_parameters: int


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence on one seed: a row of :data:`COLUMNS` per epoch, the metric before any training, and the end."""

    steps: Arrays
    start_metric: float
    ending: Ending


Row = dict[str, npt.NDArray[Any]]


def row_of(view: EnvView, action: FactoredAction | None) -> Row:
    """One epoch's entry."""
    row: Row = {name: np.zeros(shape, kind) for name, (kind, shape) in COLUMNS.items()}
    outcome = view.last_outcome
    row["op"][...] = NONE if action is None else action.op
    row["op_slot"][...] = NONE if action is None else _index(SLOTS, action.slot)
    row["op_blueprint"][...] = NONE if action is None else _index(BLUEPRINTS, action.blueprint)
    row["success"][...] = outcome is not None and outcome.success
    for name in ("metric", "loss", "train_loss"):
        row[name][...] = _number(getattr(view, name))
    for name in ("pruned", "fossilized"):
        row[name][:] = [getattr(view, name).get(blueprint, 0) for blueprint in BLUEPRINTS]
    for i, slot in enumerate(view.slots):
        row["vetoed"][i] = slot.slot_id in view.vetoed
        _write_slot(row, i, slot, view.epoch)
    return row


def _write_slot(row: Row, i: int, slot: SlotView, epoch: int) -> None:
    row["stage"][i], row["blueprint"][i] = slot.stage, _index(BLUEPRINTS, slot.blueprint)
    row["alpha"][i], row["alpha_target"][i] = slot.alpha, _number(slot.alpha_target)
    row["epochs_in_stage"][i], row["age"][i] = slot.epochs_in_stage, slot.age_epochs
    row["blocked"][i] = bool(slot.blocked_by)
    row["violations"][i] = -1 if slot.isolation_violations is None else slot.isolation_violations
    row["metric_at_germination"][i] = _number(slot.metric_at_germination)
    for blueprint, promise in slot.promise.items():
        j = _index(BLUEPRINTS, blueprint)
        row["promise"][i, j], row["promise_steps"][i, j] = promise.value, promise.steps
        row["promise_macs"][i, j] = promise.macs
        row["promise_age"][i, j] = NONE if promise.epoch is None else epoch - promise.epoch
    for j, name in enumerate(FACTS):
        fact: Fact[Any] | None = getattr(slot, name)
        row["fact_age"][i, j] = NONE if fact is None or fact.epoch is None else epoch - fact.epoch
        if fact is not None:
            value = fact.value.value if isinstance(fact.value, Paired) else fact.value
            row["fact"][i, j] = _half(value)
            if isinstance(fact.value, Paired):
                row["fact_se"][i, PAIRED.index(name)] = _half(fact.value.se)


def stacked(rows: Sequence[Row]) -> Arrays:
    """Epochs' entries as arrays ``[E + 1, ...]``."""
    return {name: np.stack([row[name] for row in rows]) for name in COLUMNS}


def action_at(steps: Arrays, epoch: int) -> FactoredAction:
    """The action that led to ``epoch``, from 1."""
    op, slot, blueprint = (int(steps[name][epoch]) for name in ("op", "op_slot", "op_blueprint"))
    return coded_action(op, slot, blueprint)


def coded_action(op: int, slot: int, blueprint: int) -> FactoredAction:
    """The action of these codes. Germinations of a table have one blend, one target and one tempo."""
    if op == Op.GERMINATE:
        return Choice(0, SLOTS[slot], BLUEPRINTS[blueprint]).action
    return FactoredAction(Op(op), None if slot == NONE else SLOTS[slot])


def _index(names: Sequence[str], name: str | None) -> int:
    return NONE if name is None else names.index(name)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _half(value: float) -> float:
    """Finite numbers stay finite at half precision."""
    return max(-65504.0, min(65504.0, value)) if np.isfinite(value) else value
