"""What a slot says: known facts, and no key for unknown ones."""

from __future__ import annotations

from typing import get_type_hints

from esper.kasmina.gates import evaluate_gate
from esper.kasmina.payloads import fossil_payload, gate_payload, health_payload
from esper.kasmina.state import SeedState
from esper.leyline import REGISTRY, GateThresholds, Metric, Paired, SeedStage
from esper.leyline import TelemetryEventType as T
from esper.leyline.payloads.lifecycle import SlotHealth


def test_a_fresh_seed_has_no_health_to_tell() -> None:
    assert health_payload(SeedState("s", "norm")) == {"alpha": 0.0, "blueprint": "norm"}


def test_every_health_key_can_be_told() -> None:
    state = SeedState("s", "norm", parameters=8)
    for part in (state.metrics, state.telemetry):
        for name in vars(part):
            setattr(part, name, Paired(1.0, 0.1, 9) if name in ("removal_cost", "probe_gain") else 1)
    told = health_payload(state)
    assert set(told) == set(get_type_hints(SlotHealth))
    assert told["removal_cost"] == 1.0


def test_a_check_without_a_measurement_has_no_measured_key() -> None:
    state = SeedState("s", "norm", stage=SeedStage.HOLDING)
    gates = GateThresholds(metric=Metric("accuracy", "%", low=0.0, high=100.0))
    told = gate_payload(evaluate_gate(state, SeedStage.FOSSILIZED, gates), SeedStage.HOLDING, SeedStage.FOSSILIZED)
    cost = next(each for each in told["checks"] if each["id"] == "removal_cost_upper")
    assert cost == {"id": "removal_cost_upper", "comparison": ">=", "threshold": 0.5, "passed": False, "unit": "%"}
    assert "removal_cost_upper_not_measured" in told["checks_failed"]


def test_a_fossil_tells_what_it_was_kept_for() -> None:
    state = SeedState("s", "norm", age_epochs=7)
    assert fossil_payload(state, None) == {"age_epochs": 7}
    state.metrics.removal_cost = Paired(2.0, 0.5, 300)
    told = fossil_payload(state, "points")
    assert told == {"age_epochs": 7, "removal_cost_se": 0.5, "unit": "points"}
    assert set(told) <= set(get_type_hints(REGISTRY[T.SEED_FOSSILIZED].payload))
