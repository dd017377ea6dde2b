"""An engine without tensors: each env's metric is a formula of its slots."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from esper.leyline import (
    ActionOutcome,
    AlphaConfig,
    EnvCost,
    EnvSpec,
    EnvView,
    EpochMeasurement,
    EvalResult,
    Fact,
    FactoredAction,
    GateThresholds,
    ModelExport,
    Op,
    Promise,
    SeedStage,
    Settled,
    SlotFacts,
    SlotView,
    TrainResult,
)
from esper.tolaria.legality import why_illegal

WORTH = {"good": 20.0, "useless": 0.0, "harmful": -10.0}
"""Metric points that a blueprint is worth at alpha 1."""


@dataclass
class FakeRow:
    spec: EnvSpec
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

    def __init__(
        self, slots: Sequence[str] = ("a", "b"), poison: Sequence[int] = (), proves: Sequence[str] = ("a", "b")
    ) -> None:
        self._names = tuple(slots)
        self._poison = tuple(poison)
        self._proves = tuple(proves)
        self.envs: list[FakeRow] = []

    def reset(self, envs: Sequence[EnvSpec]) -> None:
        self.envs = [
            FakeRow(spec, {name: SlotView(name) for name in self._names}, poison=set(self._poison)) for spec in envs
        ]

    def train_epoch(self, envs: Sequence[int]) -> list[TrainResult]:
        results = []
        for i in envs:
            env = self.envs[i]
            env.spent += 10
            for name, slot in env.slots.items():
                if slot.stage is SeedStage.GERMINATED:
                    env.slots[name] = replace(slot, stage=SeedStage.TRAINING)
            sick = env.epoch + 1 in env.poison
            env.poison.discard(env.epoch + 1)
            results.append(TrainResult(float("nan") if sick else 1.0, 100, 0.1, 1.0, not sick, 0.01, 0.001))
        return results

    def _metric(self, env: FakeRow, config: AlphaConfig) -> float:
        total = 50.0 + 0.1 * env.spec.seed
        for slot in env.slots.values():
            if slot.live and slot.blueprint is not None:
                total += WORTH[slot.blueprint] * config.get(slot.slot_id, slot.alpha)
        return total

    def evaluate(
        self,
        envs: Sequence[int],
        configs: Sequence[Sequence[AlphaConfig]],
        split: str = "validation",
        settled: Settled | None = None,
    ) -> EvalResult:
        widest = max(map(len, configs))
        metric = np.full((len(envs), widest), np.nan)
        for n, (i, each) in enumerate(zip(envs, configs, strict=True)):
            metric[n, : len(each)] = [self._metric(self.envs[i], config) for config in each]
        zeros = np.zeros_like(metric)
        ones = np.ones(len(envs))
        loss, paired = 3.0 - metric / 50.0, np.full(metric.shape, 400)
        return EvalResult(
            metric, loss, zeros + 0.1, zeros + 0.01, 400, paired, zeros + np.nan, ones, ones > 1, ones * 0.01
        )

    def apply(
        self, envs: Sequence[int], actions: Sequence[FactoredAction], reasons: Sequence[str] | None = None
    ) -> list[ActionOutcome]:
        outcomes = []
        for i, action in zip(envs, actions, strict=True):
            against = why_illegal(self.views([i])[0], action)
            if against is not None:
                outcomes.append(ActionOutcome(action, success=False, illegal=True, why_not=against))
                continue
            if action.op is Op.FOSSILIZE and action.slot not in self._proves:
                outcomes.append(ActionOutcome(action, success=False, why_not="its gate is not satisfied"))
                continue
            self._perform(self.envs[i], action)
            outcomes.append(ActionOutcome(action, success=True))
        return outcomes

    def _perform(self, env: FakeRow, action: FactoredAction) -> None:
        slot = env.slots.get(action.slot or "")
        if slot is None:
            return
        moves = {
            Op.GERMINATE: {
                "stage": SeedStage.GERMINATED,
                "blueprint": action.blueprint,
                "seed_id": f"{slot.slot_id}-{env.epoch}",
                "parameters": 10,
            },
            Op.ADVANCE: {"stage": SeedStage.HOLDING, "alpha": 1.0},
            Op.SET_ALPHA: {"alpha": action.alpha_target},
            Op.FOSSILIZE: {"stage": SeedStage.FOSSILIZED},
        }
        fresh = SlotView(slot.slot_id) if action.op is Op.PRUNE else replace(slot, **moves[action.op])
        env.slots[slot.slot_id] = fresh

    def audition(self, env: int, candidates: Sequence[tuple[str, str]]) -> None:
        for name, blueprint in candidates:
            self.envs[env].slots[name] = replace(
                self.envs[env].slots[name], promise={blueprint: Promise(WORTH[blueprint] / 100, 1, 0, 1)}
            )

    def settle(self, envs: Sequence[int], epoch: int, measured: Sequence[EpochMeasurement]) -> None:
        for i, facts in zip(envs, measured, strict=True):
            env = self.envs[i]
            env.epoch = epoch
            if facts.metric is not None and facts.loss is not None:
                env.metric, env.loss = facts.metric, facts.loss
                env.history.append(facts.metric)
            for name, fact in facts.slots.items():
                known = {k: Fact(v, epoch) for k in fact.__slots__ if (v := getattr(fact, k)) is not None}
                env.slots[name] = replace(env.slots[name], **known)

    def views(self, envs: Sequence[int]) -> list[EnvView]:
        return [
            EnvView(
                env_id=env.spec.env_id,
                episode=env.spec.episode,
                epoch=env.epoch,
                max_epochs=env.spec.max_epochs,
                slots=tuple(env.slots.values()),
                blueprints=tuple(WORTH),
                blueprint_parameters={name: dict.fromkeys(WORTH, 10) for name in env.slots},
                host_parameters=100,
                metric=env.metric,
                loss=env.loss,
                metric_history=tuple(env.history),
                gates=GateThresholds(min_training_epochs=0, min_holding_epochs=0),
                vetoed=frozenset(slot for slot, until in env.vetoed.items() if until > env.epoch),
            )
            for env in (self.envs[i] for i in envs)
        ]

    def costs(self, envs: Sequence[int]) -> list[EnvCost]:
        names = ("train_forward", "train_backward", "probe", "validation", "counterfactual", "discarded_seed", "test")
        spent = {f"{name}_macs": 0 for name in (*names, "policy")}
        bills = [{**spent, **self.envs[i].charged, "total_macs": self.envs[i].spent} for i in envs]
        return [EnvCost(100, 100, 5, 0.1, bill) for bill in bills]

    def charge(self, env: int, purpose: str, macs: int) -> None:
        self.envs[env].spent += macs
        self.envs[env].charged[f"{purpose}_macs"] += macs

    def state(self, env: int) -> dict[str, Any]:
        return {"tensors": {}, "plain": copy.deepcopy(self.envs[env])}

    def load(self, env: int, state: Mapping[str, Any]) -> None:
        self.envs[env] = copy.deepcopy(state["plain"])

    def rewind(self, env: int, state: Mapping[str, Any]) -> None:
        now = self.envs[env]
        self.load(env, state)
        self.envs[env].epoch, self.envs[env].spent, self.envs[env].poison = now.epoch, now.spent, now.poison

    def quarantine(self, env: int, slot: str, epochs: int, reason: str) -> None:
        self.envs[env].slots[slot] = SlotView(slot)
        self.envs[env].vetoed[slot] = self.envs[env].epoch + epochs

    def conclude(self, envs: Sequence[int], stay: Collection[str], reason: str) -> None:
        for i in envs:
            for name, slot in self.envs[i].slots.items():
                if slot.stage is not SeedStage.FOSSILIZED and name not in stay:
                    self.envs[i].slots[name] = SlotView(name)

    def network(self, env: int) -> dict[str, Any]:
        return {"tensors": {}, "plain": [asdict(slot) for slot in self._taking_part(env)]}

    def _taking_part(self, env: int) -> list[SlotView]:
        return [slot for slot in self.envs[env].slots.values() if slot.live and slot.alpha]

    def deliver(self, env: int, network: Mapping[str, Any], epoch: int) -> None:
        self.envs[env].slots = {name: SlotView(name) for name in self.envs[env].slots}
        for plain in network["plain"]:
            facts = {name: None for name in SlotFacts.__slots__}
            self.envs[env].slots[plain["slot_id"]] = SlotView(**{**plain, **facts})

    def save(self, env: int, directory: Path) -> ModelExport:
        return ModelExport(str(directory), 100, 0.0, (), 100)

    def materialise(self, env: int) -> Any:
        return None
