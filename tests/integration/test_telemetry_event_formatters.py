def test_seed_gate_evaluated_exists() -> None:
    from esper.leyline import TelemetryEventType

    event_type = TelemetryEventType.SEED_GATE_EVALUATED
    assert event_type.name == "SEED_GATE_EVALUATED"


def test_every_event_of_a_learning_policy_is_said_in_words() -> None:
    import msgspec

    from esper.karn.words import describe
    from esper.leyline import REGISTRY, TelemetryEvent
    from esper.leyline import TelemetryEventType as T

    update = {"round": 3, "kl": 0.02, "mean_episode_return": 4.5}
    assert "4.5" in describe(TelemetryEvent(event_type=T.PPO_UPDATE_COMPLETED, data=update))
    for kind in ("last_action", "action_distribution", "throughput", "reward_summary", "mask_hit_rates"):
        said = describe(TelemetryEvent(event_type=T.ANALYTICS_SNAPSHOT, data={"kind": kind}))
        assert said == kind.replace("_", " ")
    finding = {"round": 3, "measured": 7.0, "threshold": 5.0, "figure": "largest ratio"}
    for event_type in T:
        if event_type.name.endswith(("_DETECTED", "_SUSPECTED", "_WARNING", "_DEGRADATION")):
            msgspec.convert(finding, REGISTRY[event_type].payload)
            event = TelemetryEvent(event_type=event_type, message="the steps are too large", data=finding)
            assert describe(event) == "the steps are too large"
