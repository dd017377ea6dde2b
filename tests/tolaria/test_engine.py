"""The real engine: conformance, and bit-for-bit equality with plain PyTorch where nothing grows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from engine_conformance import EngineConformance, spec
from keeping_hosts import Pixels
from torch import nn

from esper.kasmina.slot import SlotConfig
from esper.kasmina.state import Incubation
from esper.leyline import (
    Blend,
    FactoredAction,
    HostEngine,
    Op,
    Positions,
    SeedStage,
    SiteMixing,
    TelemetryEvent,
    UsageError,
)
from esper.leyline import TelemetryEventType as T
from esper.tasks.base import TaskSpec
from esper.tasks.hosts import PointwiseHost2d
from esper.tasks.scoring import accuracy
from esper.tolaria import schedules, surgery
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.rng import Streams, derive, seeded
from esper.tolaria.setup import TrainerConfig, from_task
from toy import toy_task

TASK = toy_task()


def engine_of(
    task: TaskSpec = TASK, incubation: Incubation = Incubation.PROBE
) -> tuple[ModuleEngine, list[TelemetryEvent]]:
    events: list[TelemetryEvent] = []
    trainer = TrainerConfig(lr=1e-2, batch_size=32, slot=SlotConfig(incubation=incubation))
    return ModuleEngine(task, from_task(task, trainer), EngineConfig(trainer), events.append), events


class TestModuleEngine(EngineConformance):
    blueprint = "conv3"

    def make_engine(self) -> HostEngine:
        return engine_of()[0]


Weights = dict[str, torch.Tensor]


def in_a_bare_loop(epochs: int) -> tuple[Weights, list[float]]:
    """The same host, data, order and schedule in a bare PyTorch loop: its weights and buffers, and its losses."""
    streams = Streams(3)
    with seeded(derive(3, "host")):
        host = TASK.host()
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2, weight_decay=0.01)
    config = schedules.ScheduleConfig()
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(96, generator=streams["order"])
        total = 0.0
        host.train()
        with streams.active("train"):
            for step, index in enumerate(order.split(32)):
                moment = schedules.moment(config, epoch, step, 3)
                optimizer.param_groups[0]["lr"] = 1e-2 * schedules.host_factor(config, moment, 12.0)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(host(TASK.data.train.inputs[index]), TASK.data.train.targets[index])
                torch.autograd.backward(loss)
                optimizer.step()
                total += float(loss.detach()) * 32
        losses.append(total / 96)
    return host.state_dict(), losses


def in_the_engine(epochs: int, incubation: Incubation | None, chance: int = 3) -> tuple[Weights, list[float]]:
    """The same by the engine, with a seed in training behind the host if ``incubation`` says how it learns."""
    engine, _ = engine_of(incubation=incubation or Incubation.PROBE)
    engine.reset([replace(spec(), seed=chance)])
    if incubation is not None:
        engine.apply([0], [FactoredAction(Op.GERMINATE, "block0", "conv3", Blend.LINEAR, 1.0, 3)])
    losses = [engine.train_epoch([0])[0].loss for _ in range(epochs)]
    return engine.trainer(0).model.host.state_dict(), losses


def equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("incubation", [None, Incubation.PROBE, Incubation.STRAIGHT_THROUGH])
def test_a_host_trains_as_in_a_bare_loop_also_with_a_seed_behind_it(incubation: Incubation | None) -> None:
    weights, losses = in_the_engine(4, incubation)
    bare, bare_losses = in_a_bare_loop(4)
    assert equal(weights, bare)
    # the engine adds up an epoch's losses in single precision, each sum rounded to 6e-8 of it; the loop in double
    assert losses == pytest.approx(bare_losses, rel=1e-5)


@pytest.mark.parametrize(("incubation", "chance"), [(Incubation.GRAFT, 3), (None, 4)])
def test_a_seed_that_blends_in_and_another_chance_would_be_seen(incubation: Incubation | None, chance: int) -> None:
    weights, losses = in_the_engine(4, incubation, chance)
    bare, bare_losses = in_a_bare_loop(4)
    assert not equal(weights, bare) and losses != pytest.approx(bare_losses, rel=1e-5)


def test_pruning_takes_exactly_its_own_from_the_optimizer() -> None:
    engine, events = engine_of()
    engine.reset([spec()])
    optimizer = engine._envs[0].trainer.optimizer
    alone = {id(p) for group in optimizer.param_groups for p in group["params"]}
    engine.train_epoch([0])
    engine.apply([0], [FactoredAction(Op.GERMINATE, "block0", "conv3", Blend.LINEAR, 1.0, 3)])
    engine.train_epoch([0])
    assert len(optimizer.param_groups) == 2
    engine.apply([0], [FactoredAction(Op.PRUNE, "block0")], ["no gain"])
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == alone
    assert {id(p) for p in optimizer.state} == alone
    pruned = next(event for event in events if event.event_type is T.SEED_PRUNED)
    assert pruned.data["reason"] == "no gain" and pruned.data["by"] == "policy"
    assert engine.costs([0])[0].spent["discarded_seed_macs"] > 0


def test_a_seed_that_helps_is_grown_kept_and_exported() -> None:
    check = TestModuleEngine()
    engine, events = engine_of(toy_task(partial(PointwiseHost2d, size=8, classes=4)))
    engine.reset([spec()])
    check.germinate(engine)
    done = {"block0": False}
    for number in range(1, 13):
        check.epoch(engine, [0], number)
        slot = engine.views([0])[0].slots[0]
        op = {SeedStage.TRAINING: Op.ADVANCE, SeedStage.HOLDING: Op.FOSSILIZE}.get(slot.stage)
        if op is not None:
            (outcome,) = engine.apply([0], [FactoredAction(op, "block0")])
            done["block0"] = outcome.success and op is Op.FOSSILIZE
        if done["block0"]:
            break
    assert done["block0"], [e.data["message"] for e in events if e.event_type is T.SEED_GATE_EVALUATED]
    engine.conclude([0], (), "over")
    result = engine.evaluate([0], [({},)], split="test")
    plain = engine.materialise(0)
    with torch.no_grad():
        outputs = plain(TASK.data.test.inputs)
    assert float(accuracy(outputs, TASK.data.test.targets).mean()) == result.metric[0, 0]
    assert type(plain).__module__.startswith("esper.tasks") and not any(
        "Slot" in type(m).__name__ for m in plain.modules()
    )


def test_work_is_booked_by_purpose() -> None:
    engine, _ = engine_of()
    engine.reset([spec()])
    engine.train_epoch([0])
    spent = engine.costs([0])[0].spent
    one_pass = engine.costs([0])[0].inference_macs
    assert spent["train_forward_macs"] == 96 * one_pass
    first_layer = 1 * 8 * 64
    assert spent["train_backward_macs"] == 96 * (2 * one_pass - first_layer), "pixels ask for no gradient"
    engine.evaluate([0], [({},)])
    assert engine.costs([0])[0].spent["validation_macs"] == 32 * one_pass
    engine.apply([0], [FactoredAction(Op.GERMINATE, "block0", "conv3", Blend.LINEAR, 1.0, 3)])
    engine.train_epoch([0])
    assert engine.costs([0])[0].spent["probe_macs"] > 0
    assert engine.costs([0])[0].spent["train_forward_macs"] == 2 * 96 * one_pass, "the seed is not in the host's pass"


def in_pixels(*blueprints: str) -> ModuleEngine:
    """A host that maps each pixel on its own."""
    return engine_of(replace(TASK, host=Pixels, sites={"a": "blocks.0"}, blueprints=blueprints))[0]


def test_what_mixes_more_than_the_host_is_not_offered() -> None:
    engine = in_pixels("conv3", "pointwise", "norm")
    engine.reset([spec()])
    (view,) = engine.views([0])
    assert set(view.blueprint_parameters["a"]) == {"pointwise"}
    assert view.slots[0].may_mix == SiteMixing(Positions.NONE)
    (outcome,) = engine.apply([0], [FactoredAction(Op.GERMINATE, "a", "conv3", Blend.LINEAR, 1.0, 3)])
    assert outcome.illegal and "conv3" in (outcome.why_not or "")


def test_where_nothing_may_grow_the_reason_is_given() -> None:
    with pytest.raises(
        UsageError, match=r"conv3 fits any slot; conv3 may not grow in a: it mixes positions \(any; leg"
    ):
        in_pixels("conv3").reset([spec()])
    with pytest.raises(UsageError, match="fits any slot$"):
        in_pixels("lora4").reset([spec()])


def test_the_best_network_comes_back_with_an_unproven_seed_and_training_goes_on() -> None:
    engine, events = engine_of()
    engine.reset([spec()])
    trainer = engine.trainer(0)
    slot = next(iter(trainer.model.slots.values()))
    engine.apply([0], [FactoredAction(Op.GERMINATE, slot.slot_id, "conv3", Blend.LINEAR, 1.0, 1)])
    engine.train_epoch([0])
    assert slot.state is not None and slot.seed is not None
    slot.state.enter(SeedStage.BLENDING, 1)
    slot.state.alpha, seed_id = 1.0, slot.state.seed_id
    with torch.no_grad():
        for parameter in slot.seed.parameters():
            parameter.add_(0.1)
    expected, network = engine.evaluate([0], [({},)]), engine.network(0)
    assert all(tensor.device.type == "cpu" for tensor in network["tensors"].values())
    assert not any("exp_avg" in name for name in network["tensors"])

    engine.train_epoch([0])
    engine.apply([0], [FactoredAction(Op.PRUNE, slot.slot_id)])
    told = len(events)
    engine.deliver(0, network, 1)
    assert len(events) == told, "what is delivered again comes without a word"
    (view,) = engine.views([0])
    assert [(s.seed_id, s.stage) for s in view.slots if s.live] == [(seed_id, SeedStage.BLENDING)]
    found = engine.evaluate([0], [({},)])
    assert (found.metric[0, 0], found.loss[0, 0]) == (expected.metric[0, 0], expected.loss[0, 0])
    assert list(surgery.seed_groups(trainer.optimizer)) == [seed_id]
    (result,) = engine.train_epoch([0])
    assert result.weights_finite


def test_a_seed_without_part_in_what_is_delivered_is_pruned_and_says_why() -> None:
    engine, events = engine_of()
    engine.reset([spec()])
    network = engine.network(0)
    slot = next(iter(engine.trainer(0).model.slots.values()))
    engine.apply([0], [FactoredAction(Op.GERMINATE, slot.slot_id, "conv3", Blend.LINEAR, 1.0, 1)])
    engine.train_epoch([0])
    spent = engine.costs([0])[0].spent
    engine.deliver(0, network, 4)
    (pruned,) = [event for event in events if event.event_type is T.SEED_PRUNED]
    assert "epoch 4" in pruned.data["reason"] and not engine.views([0])[0].live_seeds
    now = engine.costs([0])[0].spent
    assert now["total_macs"] == spent["total_macs"] and now["discarded_seed_macs"] > spent["discarded_seed_macs"]


def test_trying_the_export_leaves_no_trace() -> None:
    one, other = engine_of(), engine_of()
    for engine, _ in (one, other):
        engine.reset([spec()])
    one[0].trainer(0).model.eval()
    random, told = torch.get_rng_state(), len(one[1])
    one[0].rehearse_export(0)
    assert torch.equal(torch.get_rng_state(), random) and len(one[1]) == told
    assert not any(module.training for module in one[0].trainer(0).model.modules())
    assert one[0].views([0]) == other[0].views([0]) and one[0].costs([0]) == other[0].costs([0])
    assert one[0].train_epoch([0])[0].loss == other[0].train_epoch([0])[0].loss
