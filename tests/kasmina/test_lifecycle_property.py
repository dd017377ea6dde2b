"""Random lives of one slot, legal moves and illegal ones, against what must hold after every step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

import msgspec
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from esper.kasmina.layout import Layout
from esper.kasmina.slot import EventStamp, SeedSlot, SlotConfig
from esper.kasmina.state import GrowthPlan, Incubation, SeedState
from esper.leyline import (
    GATE_FOR,
    LEGAL_MOVES,
    LIVE,
    REGISTRY,
    SEVERITIES,
    Blend,
    GateResult,
    Paired,
    SeedStage,
    Severity,
    TelemetryEvent,
)
from esper.leyline import TelemetryEventType as T

MEASURED = {
    "seed_gradient_norm_ratio",
    "isolation_violations",
    "gradient_health",
    "has_vanishing",
    "has_exploding",
    "removal_cost",
    "removal_cost_se",
    "removal_cost_loss",
    "probe_gain",
}
"""Payload keys that may only be there once they were measured."""

numbers = st.floats(-2, 12) | st.just(math.nan)
pairs = st.builds(Paired, st.floats(-1, 5), st.floats(0.01, 1), st.just(300)) | st.just(Paired(3.0, 0.1, 300))
facts = st.fixed_dictionaries(
    {},
    optional={
        "gradient_ratio": numbers,
        "gradient_health": st.floats(0, 1) | st.just(1.0),
        "has_vanishing": st.booleans(),
        "has_exploding": st.booleans(),
        "isolation_violations": st.integers(0, 1) | st.just(0),
        "removal_cost": pairs,
        "removal_cost_loss": pairs,
        "probe_gain": pairs,
        "probe_gain_loss": pairs,
        "loss": numbers,
    },
)
EVIDENCE: dict[str, Any] = {
    "gradient_ratio": 0.5,
    "gradient_health": 1.0,
    "isolation_violations": 0,
    "removal_cost": Paired(3.0, 0.1, 300),
    "removal_cost_loss": Paired(0.3, 0.01, 300),
    "probe_gain_loss": Paired(0.3, 0.01, 300),
    "loss": 1.0,
}


class Life(RuleBasedStateMachine):
    """Drives a slot as an engine would, well or badly, and judges every event as it comes out."""

    kind: type[SeedSlot] = SeedSlot

    @initialize(
        incubation=st.sampled_from(Incubation),
        embargo=st.integers(1, 2),
        detach=st.integers(0, 3),
        generations=st.integers(1, 3),
    )
    def begin(self, incubation: Incubation, embargo: int, detach: int, generations: int = 1) -> None:
        torch.manual_seed(0)
        config = SlotConfig(Layout.NC, incubation, embargo, detach, generations)
        self.kept: list[str] = []
        self.events: list[TelemetryEvent] = []
        self.measured: set[str] = set()
        self.gate: TelemetryEvent | None = None
        self.epoch = 0
        self.slot = self.kind("a", 3, on_telemetry=self.hear, config=config)
        self.slot.stamp = EventStamp(epoch=0)

    def hear(self, event: TelemetryEvent) -> None:
        self.events.append(event)
        self.judge_payload(event)
        if event.event_type is T.SEED_GATE_EVALUATED:
            self.gate = event
        elif event.event_type is T.SEED_STAGE_CHANGED:
            self.judge_move(SeedStage[event.data["from"]], SeedStage[event.data["to"]])
        elif event.event_type is T.SLOT_REOPENED:
            assert event.seed_id is not None and event.seed_id not in self.kept
            assert self.slot.stage is SeedStage.FOSSILIZED, "only a seed that was kept lets the slot open"
            self.kept.append(event.seed_id)
            assert event.data["generation"] == len(self.kept) < event.data["generations"]

    def judge_payload(self, event: TelemetryEvent) -> None:
        payload = REGISTRY[event.event_type].payload
        msgspec.convert(event.data, payload, strict=True)
        assert set(event.data) <= set(get_type_hints(payload))
        assert None not in event.data.values()
        assert all(None not in each.values() for each in event.data.get("checks", []))
        assert MEASURED & set(event.data) <= self.measured
        assert event.epoch == self.epoch and event.severity in SEVERITIES
        assert event.data.get("alpha") in (None, self.slot.state.alpha if self.slot.state else None)

    def judge_move(self, origin: SeedStage, to: SeedStage) -> None:
        assert to in LEGAL_MOVES[origin]
        ramp_down = (origin, to) == (SeedStage.HOLDING, SeedStage.BLENDING)
        if to in GATE_FOR and not ramp_down:
            assert self.gate is not None, f"{origin.name} -> {to.name} without its gate"
            assert self.gate.data["passed"] and self.gate.data["target_stage"] == to.name
            assert self.gate.data["gate"] == GATE_FOR[to].name
            self.gate = None

    @rule(
        blueprint=st.sampled_from(["norm", "mlp", "lora"]),
        plan=st.builds(GrowthPlan, st.sampled_from(Blend), st.integers(1, 3), st.sampled_from([0.5, 0.7, 1.0])),
        budget=st.sampled_from([None, None, None, 5]),
    )
    def germinate(self, blueprint: str, plan: GrowthPlan, budget: int | None) -> None:
        free = self.slot.stage is SeedStage.DORMANT
        if free:
            self.measured = set()
        result = self.slot.germinate(blueprint, plan=plan, parameter_budget=budget)
        assert result.passed is (free and budget is None)

    @rule(to=st.none() | st.sampled_from(SeedStage))
    def advance(self, to: SeedStage | None) -> None:
        before, heard = self.slot.stage, len(self.events)
        result = self.slot.advance_stage(to)
        kinds = [event.event_type for event in self.events[heard:]]
        assert kinds[0] is (T.TRANSITION_VETOED if result.gate is None else T.SEED_GATE_EVALUATED)
        assert (self.slot.stage is not before) is result.passed
        self.gate = None

    @rule(alpha=st.sampled_from([0.0, 0.5, 1.0]), tempo=st.integers(1, 3), blend=st.sampled_from(Blend))
    def retarget(self, alpha: float, tempo: int, blend: Blend) -> None:
        legal = self.slot.stage is SeedStage.HOLDING
        assert self.slot.retarget(alpha, tempo, blend).passed is legal

    @rule()
    def prune(self) -> None:
        legal = SeedStage.PRUNED in LEGAL_MOVES[self.slot.stage]
        assert self.slot.prune("for the test").passed is legal

    @rule(facts=facts)
    def record(self, facts: dict[str, Any]) -> None:
        self.slot.record(**facts)
        self.remember(facts)

    @precondition(lambda self: self.slot.live)
    @rule()
    def gather_evidence_and_advance(self) -> None:
        """Without this the later stages would hardly ever be reached."""
        self.slot.record(**EVIDENCE)
        self.remember(EVIDENCE)
        for _ in range(3):
            self.tick()
            self.slot.record(**EVIDENCE)
        self.advance(None)

    def remember(self, facts: dict[str, Any]) -> None:
        if self.slot.state is None:
            return
        names = {"gradient_ratio": "seed_gradient_norm_ratio"}
        self.measured |= {names.get(name, name) for name in facts}
        if "removal_cost" in facts:
            self.measured.add("removal_cost_se")

    @rule()
    def tick(self) -> None:
        self.epoch += 1
        self.slot.stamp = EventStamp(epoch=self.epoch)
        self.slot.tick()
        self.gate = None

    @rule()
    def there_and_back(self) -> None:
        plain = json.loads(json.dumps(self.slot.lifecycle(), allow_nan=False))
        tensors = self.slot.state_dict()
        other = SeedSlot("a", 3, config=self.slot.config)
        other.load_lifecycle(plain)
        other.load_state_dict(tensors)
        assert repr(other.state) == repr(self.slot.state)
        assert other.lifecycle() == self.slot.lifecycle()

    @rule(poison=st.sampled_from([None, 0.3, math.nan]))
    def look_at_the_output(self, poison: float | None) -> None:
        slot = self.slot
        slot_seed = {name: value.clone() for name, value in slot.state_dict().items()}
        if poison is not None:
            with torch.no_grad():
                for parameter in slot.seed_parameters():
                    parameter.fill_(poison)
        h = torch.tensor([[-0.0, 0.0, 1.0], [2.0, -3.0, 0.5]], requires_grad=True)
        g = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]])
        below = h.detach().clone().requires_grad_()
        older: Tensor = below
        for each in slot.kept:
            older = each(older)
        (older * g).sum().backward()
        if slot.isolated and slot.config.incubation is not Incubation.PROBE:
            self.measured.add("isolation_violations")
        out = slot(h)
        (out * g).sum().backward()
        untouched = slot.alpha == 0.0 or slot.stage in (SeedStage.DORMANT, SeedStage.GERMINATED)
        if slot.stage is SeedStage.TRAINING and slot.config.incubation is not Incubation.GRAFT:
            untouched = True
        if untouched:
            assert torch.equal(out.detach().view(torch.int32), older.detach().view(torch.int32))
            assert h.grad is not None and below.grad is not None and torch.equal(h.grad, below.grad)
            assert slot.kept or (torch.equal(h.grad, g) and torch.equal(out, h))
        slot.load_state_dict(slot_seed)

    @invariant()
    def dead_stages_hold_no_seed(self) -> None:
        if not hasattr(self, "slot"):
            return
        slot = self.slot
        assert (slot.stage in LIVE) == slot.live == (slot.seed is not None)
        older = [parameter for each in slot.kept for parameter in each.parameters()]
        if not slot.live:
            assert len(list(slot.parameters())) == len(older) and slot.alpha == 0.0
        assert [each.state.seed_id for each in slot.kept] == self.kept, "what was kept stays"
        assert all(each.state.stage is SeedStage.FOSSILIZED for each in slot.kept), "a seed stays terminal"
        assert len(self.kept) + (slot.stage is SeedStage.FOSSILIZED) <= slot.config.generations
        assert 0.0 <= slot.alpha <= 1.0
        view = slot.view()
        assert (view.stage, view.alpha, view.live) == (slot.stage, slot.alpha, slot.live)
        assert (view.generation, [each.seed_id for each in view.kept]) == (len(self.kept), self.kept)


class Ungated(SeedSlot):
    def _emit_gate(self, result: GateResult, target: SeedStage) -> None:
        """Moves without a word."""


class BornHealthy(SeedSlot):
    def _emit_telemetry(
        self, event_type: T, data: Mapping[str, Any] | None = None, severity: Severity = "info"
    ) -> None:
        super()._emit_telemetry(event_type, {"gradient_health": 1.0, **(data or {})}, severity)


class Undead(SeedSlot):
    def prune(self, reason: str, by: str = "policy") -> GateResult:
        seed = self.seed
        result = super().prune(reason, by)
        self.seed = seed
        return result


class Blurred(SeedSlot):
    def forward(self, h: Tensor, alpha: float | None = None) -> Tensor:
        return super().forward(h, alpha) + 0.0  # turns -0.0 into 0.0


class Leaking(SeedSlot):
    def forward(self, h: Tensor, alpha: float | None = None) -> Tensor:
        out = super().forward(h, alpha)
        return out + (h - h.detach()) if self.live and self.alpha == 0.0 else out


class Forgetful(SeedSlot):
    def _reopen(self, state: SeedState) -> None:
        super()._reopen(state)
        self.kept = nn.ModuleList()


class Greedy(SeedSlot):
    def _reopen(self, state: SeedState) -> None:
        """Opens for what grows, too."""

    def tick(self) -> None:
        super().tick()
        if self.state is not None and self.stage in (SeedStage.HOLDING, SeedStage.FOSSILIZED):
            super()._reopen(self.state)


@pytest.mark.parametrize("mutant", [Ungated, BornHealthy, Undead, Blurred, Leaking, Forgetful, Greedy])
def test_the_property_catches_a_slot_that_is(mutant: type[SeedSlot]) -> None:
    life = type("MutantLife", (Life,), {"kind": mutant})
    once = settings(max_examples=1000, stateful_step_count=30, phases=[Phase.generate], derandomize=True, database=None)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(life, settings=once)


Life.TestCase.settings = settings(stateful_step_count=30)
TestLife = Life.TestCase
