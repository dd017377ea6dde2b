from unittest.mock import Mock

from esper.kasmina.slot import SeedSlot, SeedState
from esper.leyline import TelemetryEventType


def test_lifecycle_events_include_health_fields_when_available():
    events = []
    slot = SeedSlot(slot_id="mid", channels=8, device="cpu", on_telemetry=events.append)
    slot.seed = Mock()
    slot.state = SeedState(seed_id="s1", blueprint_id="conv", slot_id="mid")
    # Pretend telemetry and metrics have been synced by the training loop
    slot.state.metrics.seed_gradient_norm_ratio = 0.42
    slot.state.metrics.isolation_violations = 3
    slot.state.telemetry.gradient_health = 0.9
    slot.state.telemetry.has_vanishing = True
    slot.state.telemetry.has_exploding = False

    slot._emit_telemetry(TelemetryEventType.SEED_STAGE_CHANGED, data={"from": "A", "to": "B"})
    payload = events[-1].data
    assert payload["seed_gradient_norm_ratio"] == 0.42
    assert payload["isolation_violations"] == 3
    assert payload["gradient_health"] == 0.9
    assert payload["has_vanishing"] is True
    assert payload["has_exploding"] is False
