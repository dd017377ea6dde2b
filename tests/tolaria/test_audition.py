"""Auditions: what places promise, without a trace in what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from fake_engine import FakeEngine
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.leyline import (
    WAIT,
    Blend,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    Metric,
    Op,
    TelemetryEvent,
    TrainResult,
    UsageError,
)
from esper.leyline import TelemetryEventType as T
from esper.tamiyo.policies import make_policy
from esper.tasks.base import TaskSpec
from esper.tolaria.audition import Audition
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.executor import Executor
from esper.tolaria.governor import Governor
from esper.tolaria.setup import TrainerConfig, from_task
from toy import toy_task

TOY = toy_task()
PLACES = (("block0", "conv3"), ("block1", "norm"))
WAITING = Decision(WAIT, "")


def executor(task: TaskSpec = TOY, **trainer: Any) -> tuple[Executor, list[TelemetryEvent]]:
    events: list[TelemetryEvent] = []
    config = TrainerConfig(**{"lr": 1e-2, "batch_size": 32, **trainer})
    engine = ModuleEngine(task, from_task(task, config), EngineConfig(config), events.append)
    made = Executor(engine, task.metric, events.append, lambda sink: Governor(task.metric, on_telemetry=sink))
    made.reset([EnvSpec(0, 0, 3, 12)])
    return made, events


def view(run: Executor) -> EnvView:
    return run.engine.views([0])[0]


def test_it_leaves_no_trace_but_the_promises_and_their_price() -> None:
    plain, (auditioned, events) = executor()[0], executor()
    plain.step([WAITING])
    auditioned.step([replace(WAITING, audition=PLACES)])
    first, other = (run.engine.state(0) for run in (plain, auditioned))
    assert first["tensors"].keys() == other["tensors"].keys()
    assert all(torch.equal(tensor, other["tensors"][name]) for name, tensor in first["tensors"].items())
    slots = {slot.slot_id: slot for slot in view(auditioned).slots}
    assert all(not slot.promise for slot in view(plain).slots)
    assert {name: set(slot.promise) for name, slot in slots.items()} == {"block0": {"conv3"}, "block1": {"norm"}}
    promise = slots["block0"].promise["conv3"]
    assert (promise.steps, promise.epoch) == (3, 1) and promise.value > 0.0
    spent = [run.engine.costs([0])[0].spent for run in (plain, auditioned)]
    assert spent[0]["probe_macs"] == 0 and spent[1]["probe_macs"] == sum(
        s.promise[b].macs for s, b in zip(slots.values(), ("conv3", "norm"), strict=True)
    )
    assert spent[0]["total_macs"] == spent[1]["total_macs"] - spent[1]["probe_macs"]
    (said,) = [event.data for event in events if event.event_type is T.PROMISES_MEASURED]
    assert said["promises"] == {name: next(iter(slot.promise.values())).value for name, slot in slots.items()}
    assert (said["steps"], said["macs"]) == (3, spent[1]["probe_macs"])


def test_one_audition_is_one() -> None:
    run, events = executor()
    for decision in (replace(WAITING, audition=PLACES), WAITING, WAITING):
        run.step([decision])
    assert sum(event.event_type is T.PROMISES_MEASURED for event in events) == 1
    assert view(run).slots[0].promise["conv3"].epoch == 1, "a promise has the age of its measurement"


def test_what_it_costs_is_what_runs() -> None:
    run, _ = executor()
    run.step([replace(WAITING, audition=(("block0", "conv3"),))])
    seed = 8 * 8 * 9 * 64 + 8 * 8 * 64  # a 3x3 and a 1x1 convolution of 8 channels on 8x8 pixels
    trainer: Any = run.engine._envs[0].trainer  # type: ignore[attr-defined]
    host, first = trainer.macs.forward, 1 * 8 * 64
    # backward: what is behind hands its gradient on; of the seed the weights, and what its norm in front needs
    each = host + seed + (host - first) + 2 * seed
    assert run.engine.costs([0])[0].spent["probe_macs"] == 96 * each


def test_a_promise_is_in_the_saved_state() -> None:
    run, _ = executor()
    run.step([replace(WAITING, audition=PLACES)])
    other, _ = executor()
    other.engine.load(0, run.engine.state(0))
    assert [slot.promise for slot in view(other).slots] == [slot.promise for slot in view(run).slots]
    old = run.engine.state(0)
    del old["plain"]["promises"]
    other.engine.load(0, old)
    assert not view(other).slots[0].promise


@pytest.mark.parametrize(
    ("candidate", "named"),
    [(("block7", "norm"), "block0"), (("block0", "conv7"), "conv3"), (("block0", "conv3"), "TRAINING")],
)
def test_what_cannot_be_auditioned_is_refused(candidate: tuple[str, str], named: str) -> None:
    run, _ = executor()
    if named == "TRAINING":
        action = FactoredAction(Op.GERMINATE, "block0", "norm", Blend.LINEAR, 1.0, 1)
        with pytest.raises(UsageError, match="TRAINING; candidates"):
            run.step([Decision(action, "", audition=(candidate,))])
        return
    with pytest.raises(UsageError, match=named):
        run.step([replace(WAITING, audition=(candidate,))])


class Broken(nn.Module):
    """A frozen net of two halves, of which ``b`` is broken: the targets are those of the whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (nn.Linear(4, 4, bias=False) for _ in range(3))
        for layer in (self.a, self.b, self.head):
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.a(x[:, :4])), self.head(torch.tanh(self.b(x[:, 4:])))], dim=1)


def broken() -> tuple[GrowingModel, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host, x = Broken().requires_grad_(False), torch.randn(64, 8)
        y = host(x)
        host.b.weight -= torch.outer(torch.randn(4), torch.randn(4))
        return GrowingModel.wrap(host, ["+a", "+b"], x), x, y


def auditioned(rate: float, steps: int) -> tuple[Audition, list[float]]:
    model, x, y = broken()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        audition = Audition(model, dict.fromkeys("ab", "lora2"), rate)
    losses = []

    def loss() -> Tensor:
        found = nn.functional.mse_loss(model(x), y)
        losses.append(float(found.detach()))
        return found

    for _ in range(steps):
        audition.step(loss, 64)
    with audition.candidates.standing(), torch.no_grad():
        loss()
    return audition, losses


def test_the_place_that_is_broken_promises_most() -> None:
    audition, losses = auditioned(5e-3, 30)
    assert audition.taken["b"] > 10 * abs(audition.taken["a"]), audition.taken
    assert losses[-1] < 0.7 * losses[0]


def test_promises_add_up_to_what_all_took_off_together() -> None:
    audition, losses = auditioned(2e-4, 20)
    assert sum(audition.taken.values()) == pytest.approx(losses[0] - losses[-1], rel=0.1)


def test_it_goes_on_from_the_midst() -> None:
    whole, _ = auditioned(5e-3, 6)
    half, _ = auditioned(5e-3, 3)
    model, x, y = broken()
    resumed = Audition.load(half.state(), model)
    for _ in range(3):
        resumed.step(lambda: nn.functional.mse_loss(model(x), y), 64)
    assert (resumed.taken, resumed.steps, resumed.examples) == (whole.taken, whole.steps, whole.examples)


def test_an_infinite_gradient_makes_no_step() -> None:
    model, x, y = broken()
    audition = Audition(model, {"a": "lora2"}, 1e-2)
    audition.step(partial(lambda: nn.functional.mse_loss(model(x), y) * torch.inf), 64)
    assert (audition.steps, audition.promises(0)) == (0, {})


@pytest.mark.parametrize("name", ["esper-v2", "promise"])
def test_what_a_rollback_took_back_is_listened_for_again_before_anything_grows(name: str) -> None:
    run, events = executor()
    policy, engine = make_policy(name), run.engine
    policy.reset([EnvSpec(0, 0, 3, 12)])
    train = engine.train_epoch

    def spoiled(envs: Sequence[int]) -> list[TrainResult]:
        found = train(envs)
        if run.epoch == 1:
            with torch.no_grad():
                next(engine.trainer(0).model.parameters()).fill_(torch.nan)  # type: ignore[attr-defined]
        return found

    engine.train_epoch = spoiled  # type: ignore[method-assign]
    heard, decided = [], []
    for _ in range(3):
        heard.append(sum(bool(slot.promise) for slot in view(run).slots))
        decided.append(policy.decide([view(run)])[0])
        run.step(decided[-1:])
    assert sum(event.event_type is T.GOVERNOR_ROLLBACK for event in events) == 1 and heard == [0, 0, 2]
    assert [len(decision.audition) for decision in decided] == [2, 2, 0]
    assert [decision.action.op for decision in decided] == [Op.WAIT, Op.WAIT, Op.GERMINATE]


def test_several_things_are_done_in_one_epoch_in_their_order() -> None:
    events: list[TelemetryEvent] = []
    metric = Metric("accuracy", "%", chance=10.0)
    run = Executor(FakeEngine(), metric, events.append, lambda sink: Governor(metric, on_telemetry=sink))
    run.reset([EnvSpec(0, 0, 3, 12)])
    one, other = (Decision(FactoredAction(Op.GERMINATE, slot, "good", Blend.LINEAR, 1.0, 1), slot) for slot in "ab")
    (report,) = run.step([replace(one, also=(other, other))])
    assert report.outcome.action == one.action and report.outcome.success
    assert [slot.live for slot in report.view.slots] == [True, True]
    told = [(event.event_type, event.slot_id) for event in events if event.event_type.name.startswith("COMMAND")]
    assert told == [
        (T.COMMAND_ISSUED, "a"),
        (T.COMMAND_EXECUTED, "a"),
        (T.COMMAND_ISSUED, "b"),
        (T.COMMAND_EXECUTED, "b"),
        (T.COMMAND_ISSUED, "b"),
        (T.COMMAND_FAILED, "b"),
    ]
