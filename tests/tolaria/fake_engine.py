"""An engine without tensors: each row's metric is a formula of its slots."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from esper.leyline import (
    ActionOutcome,
    AlphaConfig,
    EpochMeasurement,
    EvalResult,
    Fact,
    FactoredAction,
    ModelExport,
    Op,
    RowCost,
    RowSpec,
    RowView,
    SeedStage,
    SlotView,
    TrainResult,
)
from esper.tolaria.legality import why_illegal

WORTH = {"good": 20.0, "useless": 0.0, "harmful": -10.0}
"""Metric points that a blueprint is worth at alpha 1."""


@dataclass
class FakeRow:
    spec: RowSpec
    slots: dict[str, SlotView]
    epoch: int = 0
    metric: float | None = None
    loss: float | None = None
    history: list[float] = field(default_factory=list)
    spent: int = 0
    charged: Counter[str] = field(default_factory=Counter)
    vetoed: dict[str, int] = field(default_factory=dict)
    poison: set[int] = field(default_factory=set)
    """Epochs in which the loss comes out as NaN."""


class FakeEngine:
    """See :class:`esper.leyline.HostEngine`."""

    def __init__(self, slots: Sequence[str] = ("a", "b"), poison: Sequence[int] = ()) -> None:
        self._names = tuple(slots)
        self._poison = tuple(poison)
        self.rows: list[FakeRow] = []

    def reset(self, rows: Sequence[RowSpec]) -> None:
        self.rows = [
            FakeRow(spec, {name: SlotView(name) for name in self._names}, poison=set(self._poison)) for spec in rows
        ]

    def train_epoch(self, rows: Sequence[int]) -> list[TrainResult]:
        results = []
        for i in rows:
            row = self.rows[i]
            row.spent += 10
            for name, slot in row.slots.items():
                if slot.stage is SeedStage.GERMINATED:
                    row.slots[name] = replace(slot, stage=SeedStage.TRAINING)
            sick = row.epoch + 1 in row.poison
            row.poison.discard(row.epoch + 1)
            results.append(TrainResult(float("nan") if sick else 1.0, 100, 0.1, 1.0, not sick, 0.01, 0.001))
        return results

    def _metric(self, row: FakeRow, config: AlphaConfig) -> float:
        total = 50.0 + 0.1 * row.spec.seed
        for slot in row.slots.values():
            if slot.live and slot.blueprint is not None:
                total += WORTH[slot.blueprint] * config.get(slot.slot_id, slot.alpha)
        return total

    def evaluate(
        self, rows: Sequence[int], configs: Sequence[Sequence[AlphaConfig]], split: str = "validation"
    ) -> EvalResult:
        widest = max(map(len, configs))
        metric = np.full((len(rows), widest), np.nan)
        for n, (i, each) in enumerate(zip(rows, configs, strict=True)):
            metric[n, : len(each)] = [self._metric(self.rows[i], config) for config in each]
        zeros = np.zeros_like(metric)
        ones = np.ones(len(rows))
        return EvalResult(metric, 3.0 - metric / 50.0, zeros + 0.1, zeros + 0.01, 400, ones, ones > 1, ones * 0.01)

    def apply(
        self, rows: Sequence[int], actions: Sequence[FactoredAction], reasons: Sequence[str] | None = None
    ) -> list[ActionOutcome]:
        outcomes = []
        for i, action in zip(rows, actions, strict=True):
            against = why_illegal(self.views([i])[0], action)
            if against is not None:
                outcomes.append(ActionOutcome(action, success=False, illegal=True, why_not=against))
                continue
            self._perform(self.rows[i], action)
            outcomes.append(ActionOutcome(action, success=True))
        return outcomes

    def _perform(self, row: FakeRow, action: FactoredAction) -> None:
        slot = row.slots.get(action.slot or "")
        if slot is None:
            return
        moves = {
            Op.GERMINATE: {
                "stage": SeedStage.GERMINATED,
                "blueprint": action.blueprint,
                "seed_id": f"{slot.slot_id}-{row.epoch}",
                "parameters": 10,
            },
            Op.ADVANCE: {"stage": SeedStage.HOLDING, "alpha": 1.0},
            Op.SET_ALPHA: {"alpha": action.alpha_target},
            Op.FOSSILIZE: {"stage": SeedStage.FOSSILIZED},
        }
        fresh = SlotView(slot.slot_id) if action.op is Op.PRUNE else replace(slot, **moves[action.op])
        row.slots[slot.slot_id] = fresh

    def settle(self, rows: Sequence[int], epoch: int, measured: Sequence[EpochMeasurement]) -> None:
        for i, facts in zip(rows, measured, strict=True):
            row = self.rows[i]
            row.epoch = epoch
            if facts.metric is not None and facts.loss is not None:
                row.metric, row.loss = facts.metric, facts.loss
                row.history.append(facts.metric)
            for name, fact in facts.slots.items():
                known = {k: Fact(v, epoch) for k in fact.__slots__ if (v := getattr(fact, k)) is not None}
                row.slots[name] = replace(row.slots[name], **known)

    def views(self, rows: Sequence[int]) -> list[RowView]:
        return [
            RowView(
                env_id=row.spec.env_id,
                episode=row.spec.episode,
                epoch=row.epoch,
                max_epochs=row.spec.max_epochs,
                slots=tuple(row.slots.values()),
                blueprints=tuple(WORTH),
                blueprint_parameters={name: dict.fromkeys(WORTH, 10) for name in row.slots},
                host_parameters=100,
                metric=row.metric,
                loss=row.loss,
                metric_history=tuple(row.history),
                vetoed=frozenset(slot for slot, until in row.vetoed.items() if until > row.epoch),
            )
            for row in (self.rows[i] for i in rows)
        ]

    def costs(self, rows: Sequence[int]) -> list[RowCost]:
        names = ("train_forward", "train_backward", "probe", "validation", "counterfactual", "discarded_seed", "test")
        spent = {f"{name}_macs": 0 for name in (*names, "policy")}
        bills = [{**spent, **self.rows[i].charged, "total_macs": self.rows[i].spent} for i in rows]
        return [RowCost(100, 100, 5, 0.1, bill) for bill in bills]

    def charge(self, row: int, purpose: str, macs: int) -> None:
        self.rows[row].spent += macs
        self.rows[row].charged[f"{purpose}_macs"] += macs

    def state(self, row: int) -> dict[str, Any]:
        return {"tensors": {}, "plain": copy.deepcopy(self.rows[row])}

    def load(self, row: int, state: Mapping[str, Any]) -> None:
        self.rows[row] = copy.deepcopy(state["plain"])

    def rewind(self, row: int, state: Mapping[str, Any]) -> None:
        now = self.rows[row]
        self.load(row, state)
        self.rows[row].epoch, self.rows[row].spent, self.rows[row].poison = now.epoch, now.spent, now.poison

    def quarantine(self, row: int, slot: str, epochs: int, reason: str) -> None:
        self.rows[row].slots[slot] = SlotView(slot)
        self.rows[row].vetoed[slot] = self.rows[row].epoch + epochs

    def conclude(self, rows: Sequence[int]) -> None:
        for i in rows:
            for name, slot in self.rows[i].slots.items():
                if slot.stage is not SeedStage.FOSSILIZED:
                    self.rows[i].slots[name] = SlotView(name)

    def save(self, row: int, directory: Path) -> ModelExport:
        return ModelExport(str(directory), 100, 0.0, ())

    def materialise(self, row: int) -> Any:
        return None
