"""One slot: forward modes, moves, measured facts, checkpoint."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.blueprints import Blueprint
from esper.kasmina.layout import Layout
from esper.kasmina.slot import EventStamp, SeedSlot, SlotConfig
from esper.kasmina.state import GrowthPlan, Incubation
from esper.leyline import Blend, GateThresholds, Metric, Paired, SeedStage, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T

GAIN = Paired(1.0, 0.1, 300)


def make(incubation: Incubation = Incubation.PROBE, **config: Any) -> tuple[SeedSlot, list[TelemetryEvent]]:
    events: list[TelemetryEvent] = []
    settings = SlotConfig(layout=Layout.NC, incubation=incubation, **config)
    return SeedSlot("a", 4, on_telemetry=events.append, config=settings), events


def grow(slot: SeedSlot, stage: SeedStage, plan: GrowthPlan | None = None) -> SeedSlot:
    """Bring a dormant slot to ``stage``, with good evidence at every gate."""
    assert slot.germinate("mlp", plan=plan)
    while slot.stage is not stage:
        slot.record(
            probe_gain_loss=GAIN,
            removal_cost=GAIN,
            removal_cost_loss=GAIN,
            gradient_ratio=0.5,
            gradient_health=1.0,
            isolation_violations=0,
            loss=1.0,
        )
        if slot.stage in (SeedStage.TRAINING, SeedStage.HOLDING):
            slot.advance_stage()
        else:
            slot.tick()
            continue
        if slot.stage is not stage:
            slot.tick()
    return slot


def named(events: list[TelemetryEvent]) -> list[str]:
    return [event.event_type.name for event in events]


def poison(slot: SeedSlot, value: float) -> None:
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.fill_(value)


# forward


def test_dormant_returns_the_very_tensor() -> None:
    slot, _ = make()
    h = torch.randn(2, 4)
    assert slot(h) is h
    assert slot(h, 1.0) is h
    assert (slot.alpha, slot.live, slot.stage) == (0.0, False, SeedStage.DORMANT)
    assert list(slot.seed_parameters()) == []


@pytest.mark.parametrize("stage", [SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.HOLDING])
def test_alpha_0_never_runs_the_seed(stage: SeedStage) -> None:
    slot, _ = make()
    grow(slot, stage)

    class Explodes(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            raise AssertionError("the seed ran")

    slot.seed = Explodes()
    h = torch.randn(2, 4)
    assert slot(h, 0.0) is h
    if stage is not SeedStage.HOLDING:
        assert slot(h) is h


def test_straight_through_leaves_the_output_bit_equal_and_teaches_the_seed() -> None:
    slot, _ = make(Incubation.STRAIGHT_THROUGH)
    grow(slot, SeedStage.TRAINING)
    h = torch.tensor([[0.0, -0.0, 1.0, float("inf")]], requires_grad=True)
    poison(slot, float("nan"))
    out = slot(h)
    assert torch.equal(out.detach().view(torch.int32), h.detach().view(torch.int32))
    g = torch.randn(1, 4)
    (out * g).sum().backward()
    assert h.grad is not None and torch.equal(h.grad, g)
    assert all(parameter.grad is not None for parameter in slot.seed_parameters())

    slot.eval()
    assert slot(h) is h
    slot.train()
    with torch.no_grad():
        assert slot(h) is h


def test_graft_is_blended_in_from_the_start_and_detached_for_some_epochs() -> None:
    slot, _ = make(Incubation.GRAFT, detach_epochs=2)
    grow(slot, SeedStage.TRAINING)
    assert slot.alpha == 1.0 and slot.isolated
    h = torch.randn(3, 4, requires_grad=True)
    out = slot(h)
    assert torch.equal(out, h)
    out.sum().backward()
    assert h.grad is not None and torch.equal(h.grad, torch.ones(3, 4))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.normal_()
    slot.tick()
    slot.tick()
    assert not slot.isolated
    h.grad = None
    slot(h).sum().backward()
    assert not torch.equal(h.grad, torch.ones(3, 4))


def test_blending_is_a_lerp_with_gradient_to_both() -> None:
    slot, _ = make()
    grow(slot, SeedStage.BLENDING, GrowthPlan(tempo=2))
    poison(slot, 0.3)
    assert slot.alpha == 0.5 and slot.seed is not None
    h = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(slot(h), torch.lerp(h, slot.seed(h), 0.5))
    assert torch.equal(slot(h, 0.25), torch.lerp(h, slot.seed(h), 0.25))
    assert torch.equal(slot(h, 1.0), slot.seed(h))
    slot(h).sum().backward()
    assert h.grad is not None and all(parameter.grad is not None for parameter in slot.seed_parameters())


def test_an_evaluation_writes_nothing_to_the_slot() -> None:
    slot, _ = make()
    grow(slot, SeedStage.TRAINING)
    before = json.dumps(slot.lifecycle())
    with torch.no_grad():
        slot(torch.randn(2, 4), 1.0)
    slot.tick()
    assert slot.state is not None and slot.state.metrics.isolation_violations == 0
    assert json.dumps(slot.lifecycle()) != before  # the tick counted the epoch, and only that
    slot.state.epochs_in_stage -= 1
    slot.state.age_epochs -= 1
    assert json.dumps(slot.lifecycle()) == before


def test_a_seed_in_another_precision_comes_back_in_the_host_s() -> None:
    slot, _ = make()
    grow(slot, SeedStage.HOLDING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert slot(torch.randn(2, 4), 0.5).dtype is torch.float32


# germination


def test_germination_says_its_gate_first() -> None:
    slot, events = make()
    slot.stamp = EventStamp(env_id=3, episode=2, epoch=7)
    assert slot.germinate("mlp", plan=GrowthPlan(Blend.COSINE, 5, 0.7))
    assert named(events) == ["SEED_GATE_EVALUATED", "SEED_STAGE_CHANGED", "SEED_GERMINATED"]
    assert events[0].data["gate"] == "G0" and events[0].data["target_stage"] == "GERMINATED"
    assert {(e.env_id, e.episode, e.epoch, e.slot_id, e.seed_id) for e in events} == {(3, 2, 7, "a", "a-1")}
    data = events[-1].data
    assert (data["blend"], data["tempo"], data["alpha_target"], data["parameters"]) == ("cosine", 5, 0.7, 84)


def test_the_seed_s_weights_come_from_the_global_stream_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    slot, _ = make()
    slot.germinate("mlp")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    other, _ = make()
    other.germinate("mlp", sample=torch.ones(5, 4))
    assert torch.equal(torch.get_rng_state(), after)
    pairs = zip(slot.seed_parameters(), other.seed_parameters(), strict=True)
    assert all(torch.equal(mine, yours) for mine, yours in pairs)


class Widens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h)  # type: ignore[no-any-return]


WIDENS = Blueprint("widens", frozenset({Layout.NC}), lambda c: 25, lambda c, _: Widens())


def test_a_seed_that_fails_g0_leaves_the_slot_dormant() -> None:
    slot, events = make()
    result = slot.germinate(f"{__name__}:WIDENS")
    assert not result and result.checks_failed == ("shape=(4, 5)",)
    assert named(events) == ["SEED_GATE_EVALUATED"]
    assert events[0].seed_id == "a-1" and events[0].data["passed"] is False
    assert slot.state is None and slot.seed is None

    assert slot.germinate("mlp", parameter_budget=83).checks_failed == ("parameters=84",)
    assert slot.germinate("mlp", parameter_budget=84)
    assert slot.view().seed_id == "a-3"


def test_an_unknown_blueprint_is_a_usage_error() -> None:
    slot, events = make()
    with pytest.raises(UsageError, match="mlp"):
        slot.germinate("mpl")
    assert events == [] and slot.state is None


def test_a_taken_slot_vetoes() -> None:
    slot, events = make()
    slot.germinate("mlp")
    del events[:]
    assert not slot.germinate("norm")
    assert named(events) == ["TRANSITION_VETOED"]
    assert events[0].severity == "warning"


# moves


def test_the_way_up_and_what_it_says() -> None:
    slot, events = make()
    slot.gates = GateThresholds(metric=Metric("accuracy", "points"))
    grow(slot, SeedStage.FOSSILIZED, GrowthPlan(tempo=2, alpha_target=0.5))
    stages = [event.data["to"] for event in events if event.event_type is T.SEED_STAGE_CHANGED]
    assert stages == ["GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]
    assert slot.alpha == 0.5
    kept = events[-1]
    assert kept.event_type is T.SEED_FOSSILIZED
    assert (kept.data["removal_cost"], kept.data["removal_cost_se"], kept.data["unit"]) == (1.0, 0.1, "points")
    assert slot.state is not None and kept.data["age_epochs"] == slot.state.age_epochs
    assert not slot.prune("too late") and not slot.advance_stage() and slot.stage is SeedStage.FOSSILIZED


def test_a_blocked_seed_says_why_until_it_passes() -> None:
    slot, _ = make()
    grow(slot, SeedStage.TRAINING)
    assert slot.state is not None
    slot.state.metrics.probe_gain_loss = None
    slot.advance_stage()
    assert "probe_gain_loss_lower_not_measured" in slot.view().blocked_by
    slot.record(probe_gain_loss=GAIN)
    for _ in range(3):
        slot.tick()
    assert slot.advance_stage()
    assert slot.view().blocked_by == ()


@pytest.mark.parametrize(
    ("stage", "target"),
    [
        (SeedStage.GERMINATED, SeedStage.BLENDING),
        (SeedStage.TRAINING, SeedStage.PRUNED),
        (SeedStage.HOLDING, SeedStage.BLENDING),
        (SeedStage.HOLDING, SeedStage.TRAINING),
    ],
)
def test_an_illegal_advance_is_vetoed(stage: SeedStage, target: SeedStage) -> None:
    slot, events = make()
    grow(slot, stage)
    del events[:]
    result = slot.advance_stage(target)
    assert not result and result.gate is None and target.name in result.message
    assert named(events) == ["TRANSITION_VETOED"]
    assert (events[0].data["from"], events[0].data["target_stage"]) == (stage.name, target.name)
    assert slot.stage is stage


def test_a_dormant_slot_vetoes_every_move() -> None:
    slot, events = make()
    assert not (slot.advance_stage() or slot.retarget(0.5, 3, Blend.LINEAR) or slot.prune("no"))
    assert named(events) == ["TRANSITION_VETOED"] * 3
    slot.tick()
    assert len(events) == 3


@pytest.mark.parametrize("blend", Blend)
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_retarget_ramps_up_and_down_and_holds(blend: Blend, target: float) -> None:
    slot, events = make()
    grow(slot, SeedStage.HOLDING, GrowthPlan(alpha_target=0.7))
    del events[:]
    assert slot.retarget(target, 4, blend)
    assert named(events) == ["SEED_STAGE_CHANGED", "SEED_ALPHA_RETARGETED"]
    assert (events[1].data["alpha_from"], events[1].data["alpha_target"]) == (0.7, target)
    way = [slot.alpha]
    for _ in range(4):
        slot.tick()
        way.append(slot.alpha)
    assert way == sorted(way, reverse=target < 0.7)
    assert slot.stage is SeedStage.HOLDING and slot.alpha == target
    slot.tick()
    assert slot.stage is SeedStage.HOLDING and slot.alpha == target


def test_a_ramp_cannot_be_set_outside_holding_or_its_range() -> None:
    slot, _ = make()
    grow(slot, SeedStage.BLENDING)
    assert not slot.retarget(0.5, 3, Blend.LINEAR)
    grow(other := make()[0], SeedStage.HOLDING)
    with pytest.raises(UsageError):
        other.retarget(1.5, 3, Blend.LINEAR)
    assert other.stage is SeedStage.HOLDING


def test_a_ramp_that_ruins_the_loss_stays_in_blending() -> None:
    slot, events = make()
    grow(slot, SeedStage.BLENDING, GrowthPlan(tempo=1))
    slot.record(loss=math.nan)
    slot.tick()
    assert slot.stage is SeedStage.BLENDING
    assert events[-1].data["checks_failed"] == ["loss_finite=False"]
    slot.record(loss=1.0)
    slot.tick()
    assert slot.stage is SeedStage.HOLDING


@pytest.mark.parametrize("stage", [SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING])
def test_a_pruned_slot_is_empty_at_once_and_free_after_its_cool_down(stage: SeedStage) -> None:
    slot, events = make(embargo_epochs=2)
    grow(slot, stage)
    del events[:]
    assert slot.prune("rent", by="governor")
    assert named(events) == ["SEED_STAGE_CHANGED", "SEED_PRUNED"]
    assert (events[1].data["from"], events[1].data["by"]) == (stage.name, "governor")
    assert list(slot.parameters()) == [] and slot.state_dict() == {}
    h = torch.randn(2, 4)
    assert slot(h) is h and slot(h, 1.0) is h
    stages = []
    for _ in range(4):
        assert not slot.germinate("mlp") and slot.seed is None
        slot.tick()
        stages.append(slot.stage.name)
    assert stages == ["EMBARGOED", "EMBARGOED", "RESETTING", "DORMANT"]
    assert slot.germinate("mlp") and slot.view().seed_id == "a-2"


def test_a_leak_is_told_once_per_epoch() -> None:
    slot, events = make()
    grow(slot, SeedStage.TRAINING)
    slot.monitor.tap(torch.ones(2, requires_grad=True)).sum().backward()
    slot.tick()
    leak = events[-1]
    assert leak.event_type is T.ISOLATION_VIOLATION and leak.severity == "error"
    assert leak.data["violations"] == 1 and leak.data["host_gradient_norm"] == pytest.approx(2**0.5)
    slot.tick()
    assert events[-1] is leak


# facts


def test_facts_carry_their_age_and_unmeasured_ones_change_nothing() -> None:
    slot, _ = make()
    slot.record(loss=1.0)  # nobody there to remember it
    slot.germinate("mlp")
    slot.stamp = EventStamp(epoch=4)
    slot.record(removal_cost=GAIN, gradient_ratio=0.5, gradient_health=0.9, has_vanishing=False, loss=None)
    slot.stamp = EventStamp(epoch=5)
    slot.record(removal_cost=None, gradient_health=0.8)
    view = slot.view()
    assert view.removal_cost is not None and (view.removal_cost.value, view.removal_cost.epoch) == (GAIN, 4)
    assert view.gradient_ratio is not None and view.gradient_ratio.epoch == 4
    assert view.gradient_health is not None and view.gradient_health.epoch == 5
    assert view.probe_gain is view.isolation_violations is view.metric_at_germination is None
    with pytest.raises(UsageError, match="removal_cost"):
        slot.record(removal_costs=GAIN)


def test_gradients_are_measured_or_absent() -> None:
    slot, _ = make()
    slot.germinate("pointwise")
    slot.record_gradients([], 1.0, 100)
    assert slot.view().gradient_ratio is slot.view().gradient_health is None
    slot.record_gradients([torch.tensor([1e-9]), None, torch.tensor([2.0])], None, 100)
    health = slot.view().gradient_health
    assert health is not None and health.value == 0.75 and slot.view().gradient_ratio is None
    for host_norm in (2.0, 4.0):
        slot.record_gradients([torch.tensor([2.0])], host_norm, 20)
    ratio = slot.view().gradient_ratio
    assert ratio is not None and ratio.value == pytest.approx(0.9 * 1.0 + 0.1 * 0.5)


# checkpoint


@pytest.mark.parametrize("stage", [SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.FOSSILIZED, SeedStage.PRUNED])
def test_a_slot_is_brought_back_from_plain_data_and_tensors(stage: SeedStage) -> None:
    slot, _ = make()
    if stage is SeedStage.PRUNED:
        grow(slot, SeedStage.TRAINING).prune("rent")
    else:
        grow(slot, stage)
        poison(slot, 0.3)
    plain, tensors = json.loads(json.dumps(slot.lifecycle())), slot.state_dict()

    other, events = make()
    other.germinate("norm")
    del events[:]
    stream = torch.get_rng_state()
    other.load_lifecycle(plain)
    other.load_state_dict(tensors)
    assert torch.equal(torch.get_rng_state(), stream) and events == []
    assert other.state == slot.state and other.view() == slot.view()
    h = torch.randn(2, 4)
    assert torch.equal(other(h), slot(h))
    other.load_lifecycle({"state": None, "germinations": 0})
    assert other.stage is SeedStage.DORMANT and other.state_dict() == {}


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError):
        SlotConfig(embargo_epochs=0)
