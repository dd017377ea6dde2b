"""Envs trained as one computation: conformance, and what each learns is what it learns alone, to float tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from engine_conformance import EngineConformance, spec
from tiny import tiny
from torch import nn

from esper.kasmina.slot import SlotConfig
from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, HostEngine, Op, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.tasks.base import Data, Split, TaskSpec
from esper.tolaria import stacking
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.executor import Executor
from esper.tolaria.governor import Governor
from esper.tolaria.schedules import ScheduleConfig
from esper.tolaria.setup import OptimizerFactory, TrainerConfig, adamw, from_task
from esper.tolaria.stacking import StackedEngine, measured_gain

TASK = tiny(max_epochs=6, examples=100)
CLOSE = pytest.approx  # of figures that two orders of the same sums give


def in_double() -> TaskSpec:
    """Where a gradient is next to nothing Adam makes a whole step of its rounding: in double none is to be seen."""
    splits = (Split(split.inputs.double(), split.targets) for split in TASK.data.splits().values())
    return replace(TASK, host=lambda: TASK.host().double(), data=Data.of(*splits, source="drawn"))


def trainer_config(optimizer: OptimizerFactory = adamw) -> TrainerConfig:
    return TrainerConfig(lr=1e-2, batch_size=32, slot=SlotConfig(), optimizer=optimizer)


def engine_of(
    kind: type[ModuleEngine],
    task: TaskSpec = TASK,
    optimizer: OptimizerFactory = adamw,
    schedule: ScheduleConfig | None = None,
) -> tuple[Any, list[TelemetryEvent]]:
    events: list[TelemetryEvent] = []
    trainer = replace(trainer_config(optimizer), schedule=schedule or ScheduleConfig())
    return kind(task, from_task(task, trainer), EngineConfig(trainer), events.append), events


class Always(StackedEngine):
    """Stacks whatever can be, whether it pays or not."""

    def _pays(self, members: Sequence[int]) -> bool:
        return measured_gain([self.trainer(i) for i in members]) > 0


class TestStackedEngine(EngineConformance):
    blueprint = "mlp"

    def make_engine(self) -> HostEngine:
        engine: HostEngine = engine_of(Always)[0]
        return engine

    def test_rows_with_the_same_seed_are_the_same_and_do_not_feel_each_other(self) -> None:
        alone, beside = self.make_engine(), self.make_engine()
        alone.reset([spec()])
        beside.reset([spec(1, seed=9), spec(0)])
        for number in (1, 2, 3):
            assert self.epoch(alone, [0], number)[0] == CLOSE(self.epoch(beside, [0, 1], number)[1], rel=1e-5)
        assert alone.views([0])[0].metric == beside.views([1])[0].metric


SEEDS = (3, 9, 27, 81)


def specs() -> list[EnvSpec]:
    return [replace(spec(number), seed=seed) for number, seed in enumerate(SEEDS)]


def sgd(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def amsgrad(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, amsgrad=True, betas=(0.8, 0.99))


def weights(engine: ModuleEngine, env: int) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in engine.trainer(env).model.parameters()])


@pytest.mark.parametrize("optimizer", [adamw, sgd, amsgrad])
def test_each_learns_what_it_learns_alone(optimizer: OptimizerFactory) -> None:
    """Topologies part and meet again on the way: one grows a seed, and loses it."""
    (one, _), (other, _) = (engine_of(kind, in_double(), optimizer) for kind in (ModuleEngine, Always))
    check = TestStackedEngine()
    for engine in (one, other):
        engine.reset(specs())
    stacked = []
    for number in range(1, 6):
        for engine in (one, other):
            if number == 3:
                check.germinate(engine, 2)
            if number == 4:
                engine.conclude([2], (), "out again")
        told = [each.train_epoch([0, 1, 2, 3]) for each in (one, other)]
        stacked.append([each.stacked for each in told[1]])
        for mine, its in zip(*told, strict=True):
            assert its.loss == CLOSE(mine.loss, rel=1e-5) and its.examples == mine.examples == 100
            assert its.host_gradient_norm == CLOSE(mine.host_gradient_norm, rel=1e-7)
            assert its.learning_rate == mine.learning_rate and its.weights_finite
            assert (its.seconds is None) == (its.stacked > 1) and (its.share_seconds or 0) > 0
        for i in range(4):
            torch.testing.assert_close(weights(other, i), weights(one, i), rtol=1e-7, atol=1e-9)
    assert stacked == [[4, 4, 4, 4], [4, 4, 4, 4], [3, 3, 1, 3], [4, 4, 4, 4], [4, 4, 4, 4]]
    for mine, its in zip(one.costs(range(4)), other.costs(range(4)), strict=True):
        assert its == mine, "work is booked for each as if it were alone"
    assert len({float(weights(other, i).sum()) for i in range(4)}) == 4


def test_a_state_goes_from_one_engine_to_the_other() -> None:
    (one, _), (other, _) = engine_of(ModuleEngine), engine_of(Always)
    for engine in (one, other):
        engine.reset(specs()[:2])
    other.train_epoch([0, 1])
    for i in (0, 1):
        one.load(i, other.state(i))
    for each in zip(one.train_epoch([0, 1]), other.train_epoch([0, 1]), strict=True):
        assert each[0].loss == CLOSE(each[1].loss, rel=1e-5)


class _Odd(nn.Sequential):
    def __init__(self, *extra: Callable[[], nn.Module]) -> None:
        super().__init__(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), *(each() for each in extra)), nn.Linear(8, 2))


def frozen() -> nn.Module:
    host = _Odd()
    host[0].requires_grad_(False)
    return host


class _Branching(nn.Module):
    """Looks at a value, which no stack has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if float(x.detach().sum()) > 1e9 else x


def masked() -> nn.Module:
    host = _Odd()
    host.mask = torch.rand(8)
    return host


def masked_deeper() -> nn.Module:
    host = _Odd()
    host[1].masks = {"first": [torch.rand(8)]}
    return host


def hooked() -> nn.Module:
    host, scale = _Odd(), float(torch.rand(()))
    host[0].register_forward_hook(lambda module, args, output: output * scale)
    return host


def hooked_before() -> nn.Module:
    host = _Odd()
    host[2].register_forward_pre_hook(lambda module, args: None)
    return host


def replaced() -> nn.Module:
    host, scale = _Odd(), float(torch.rand(()))
    inner = host[1].forward
    host[1].forward = lambda x: inner(x) * scale
    return host


@pytest.mark.parametrize(
    ("host", "grouped"),
    [
        (partial(_Odd, nn.GELU, partial(nn.LayerNorm, 8)), True),
        (partial(_Odd, partial(nn.BatchNorm1d, 8)), False),
        (partial(_Odd, partial(nn.Dropout, 0.1)), True),
        (partial(_Odd, _Branching), True),
        (frozen, False),
        (masked, False),
        (masked_deeper, False),
        (hooked, False),
        (hooked_before, False),
        (replaced, False),
    ],
)
def test_hosts_that_cannot_be_stacked_are_trained_alone(host: Any, grouped: bool) -> None:
    task = replace(TASK, host=host)
    (one, _), (other, _) = engine_of(ModuleEngine, task), engine_of(Always, task)
    for engine in (one, other):
        engine.reset(specs())
    assert (stacking._group(other.trainer(0)) is not None) == grouped
    can = isinstance(host, partial) and host.args[0] is nn.GELU
    for _ in range(2):
        told = [each.train_epoch([0, 1, 2, 3]) for each in (one, other)]
        assert {each.stacked for each in told[1]} == ({4} if can else {1})
        for mine, its in zip(*told, strict=True):
            assert its.loss == (CLOSE(mine.loss, rel=1e-5) if can else mine.loss), "a trial leaves no trace"


class _Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def tied() -> nn.Module:
    host = _Odd(partial(nn.Linear, 8, 8))
    host[1][1].weight = host[1][0].weight
    return host


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (partial(_Odd, partial(_Scaled, 1.0)), partial(_Odd, partial(_Scaled, 1.0)), True),
        (partial(_Odd, partial(_Scaled, 1.0)), partial(_Odd, partial(_Scaled, 2.0)), False),
        (partial(_Odd, partial(nn.LeakyReLU, 0.1)), partial(_Odd, partial(nn.LeakyReLU, 0.3)), False),
        (partial(_Odd, nn.GELU), partial(_Odd, nn.ReLU), False),
        (partial(_Odd, partial(nn.Linear, 8, 8)), tied, False),
    ],
)
def test_hosts_that_compute_otherwise_are_not_stacked(one: Any, other: Any, alike: bool) -> None:
    hosts = iter((one, other, one))
    engine, _ = engine_of(Always, replace(TASK, host=lambda: next(hosts)()))
    engine.reset(specs()[:3])
    assert [each.stacked for each in engine.train_epoch([0, 1, 2])] == ([3] * 3 if alike else [2, 1, 2])


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        (nn.CrossEntropyLoss(), True),
        (nn.CrossEntropyLoss(label_smoothing=0.1), False),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])), False),
    ],
)
def test_envs_with_other_losses_are_not_stacked(other: nn.Module, alike: bool) -> None:
    engine, _ = engine_of(Always)
    engine.reset(specs()[:2])
    for number, criterion in enumerate((nn.CrossEntropyLoss(), other)):
        trainer = engine.trainer(number)
        trainer.setup = replace(trainer.setup, criterion=criterion)
    assert [each.stacked for each in engine.train_epoch([0, 1])] == ([2, 2] if alike else [1, 1])


def test_envs_whose_rates_differ_are_not_stacked() -> None:
    """A ``wsd`` rate falls from the latest birth on: envs with other births are alike until one of them falls."""
    engine, _ = engine_of(Always, schedule=ScheduleConfig(shape="wsd", decay=0.75))  # from epoch 3 of 12 on
    engine.reset(specs()[:3])
    engine.trainer(0).past_births.append(1.0)
    stacked = []
    for number in range(5):
        if number == 4:
            engine.trainer(2).past_births.append(4.0)
        told = engine.train_epoch([0, 1, 2])
        stacked.append([each.stacked for each in told])
    assert stacked == [[3, 3, 3]] * 4 + [[2, 2, 1]]
    assert [each.learning_rate for each in told] == CLOSE([1e-2 * 7.25 / 9] * 2 + [1e-2 * 7.25 / 8]), "each one's own"


def test_envs_whose_optimizers_were_made_with_other_rates_are_not_stacked() -> None:
    rates = iter((1.0, 0.1, 1.0))
    engine, _ = engine_of(Always, optimizer=lambda parameters, lr, decay: adamw(parameters, lr * next(rates), decay))
    engine.reset(specs()[:3])
    for _ in range(2):
        assert [each.stacked for each in engine.train_epoch([0, 1, 2])] == [2, 1, 2]


def test_it_stacks_only_where_that_was_found_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def gain(trainers: Sequence[Any]) -> float:
        asked.append(len(trainers))
        return 3.0 if len(trainers) > 3 else 0.9

    monkeypatch.setattr(stacking, "measured_gain", gain)
    engine, _ = engine_of(StackedEngine)
    engine.reset(specs())
    for envs, expected in (([0, 1, 2, 3], 4), ([0, 1], 1), ([0, 1], 1), ([2, 3], 1)):
        assert {each.stacked for each in engine.train_epoch(envs)} == {expected}
    assert asked == [4, 2], "each size is measured once; envs that are apart by an epoch are no group"
    resumed, _ = engine_of(StackedEngine)
    resumed.reset(specs())
    for i in range(4):
        resumed.load(i, engine.state(i))
    kind = stacking._kind(engine.trainer(0).model.host)
    assert resumed.gains == {(kind, 2): 0.9, (kind, 4): 3.0}, "a resumed run stacks what this one did"
    hosts = iter((TASK.host, TASK.host, partial(_Odd, nn.GELU), partial(_Odd, nn.GELU)))
    mixed, _ = engine_of(StackedEngine, replace(TASK, host=lambda: next(hosts)()))
    mixed.reset(specs())
    asked.clear()
    mixed.train_epoch([0, 1, 2, 3])
    assert asked == [2, 2], "and each kind of host"


def test_times_are_told_as_those_of_the_stack() -> None:
    engine, events = engine_of(Always)
    metric = TASK.metric
    run = Executor(engine, metric, events.append, governor=lambda sink: Governor(metric, on_telemetry=sink))
    run.reset(specs())
    germinate = FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1)
    run.step([Decision(WAIT, "")] * 3 + [Decision(germinate, "")])
    results = run.finish()
    done = [event.data for event in events if event.event_type is T.EPOCH_COMPLETED]
    assert ["train_ms" in data for data in done] == [False, False, False, True]
    assert [data.get("stacked_envs") for data in done] == [3, 3, 3, None]
    spent = {e.env_id: e.data["seconds"] for e in events if e.event_type is T.EPISODE_ENDED}
    assert all(spent[i] > done[i]["stack_train_ms"] / 3000.0 for i in range(3)) and len(results) == 4
