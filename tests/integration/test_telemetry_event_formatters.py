def test_seed_gate_evaluated_exists() -> None:
    from esper.leyline import TelemetryEventType

    event_type = TelemetryEventType.SEED_GATE_EVALUATED
    assert event_type.name == "SEED_GATE_EVALUATED"
