"""The epoch cycle on an engine whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine

from esper.leyline import (
    REGISTRY,
    WAIT,
    Blend,
    Decision,
    EnvSpec,
    EsperError,
    FactoredAction,
    HostEngine,
    Metric,
    Op,
    SeedStage,
    TelemetryEvent,
)
from esper.leyline import TelemetryEventType as T
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor, GovernorConfig

METRIC = Metric("accuracy", "%", chance=10.0)
WAITING = Decision(WAIT, "nothing to do")


def executor(engine: FakeEngine, config: ExecutorConfig | None = None) -> tuple[Executor, list[TelemetryEvent]]:
    events: list[TelemetryEvent] = []
    every = GovernorConfig(snapshot_every=1)
    return Executor(engine, METRIC, events.append, lambda sink: Governor(METRIC, every, sink), config), events


def spec(env_id: int = 0, epochs: int = 6) -> EnvSpec:
    return EnvSpec(env_id, 0, env_id, epochs, "grown", "test")


def germinate(slot: str, blueprint: str = "good") -> Decision:
    return Decision(FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, 1.0, 1), "try it", (("gain", 1.0),))


def of(events: list[TelemetryEvent], kind: T) -> list[TelemetryEvent]:
    return [event for event in events if event.event_type is kind]


def test_the_fake_is_an_engine() -> None:
    assert isinstance(FakeEngine(), HostEngine)


def test_an_epoch_ends_with_its_commit_barrier_and_every_payload_is_legal() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec()])
    script = [germinate("a"), WAITING, Decision(FactoredAction(Op.ADVANCE, "a"), "blend it in"), WAITING]
    for decision in script:
        begin = len(events)
        run.step([decision])
        assert events[-1].event_type is T.EPOCH_COMPLETED
        assert len(of(events[begin:], T.EPOCH_COMPLETED)) == 1
    run.finish([Decision(FactoredAction(Op.FOSSILIZE, "a"), "it pays")])
    for event in events:
        msgspec.convert(event.data, REGISTRY[event.event_type].payload, strict=True)
        assert (event.env_id, event.episode) == (0, 0)


def test_counterfactuals_are_measured_against_the_row_as_it_is() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec()])
    run.step([germinate("a", "harmful")])
    (probe,) = of(events, T.COUNTERFACTUAL_COMPUTED)
    assert probe.data["probe_gain"] == pytest.approx(-10.0) and "removal_cost" not in probe.data
    run.step([Decision(FactoredAction(Op.ADVANCE, "a"), "")])
    blended = of(events, T.COUNTERFACTUAL_COMPUTED)[-1]
    assert blended.data["removal_cost"] == pytest.approx(-10.0) and blended.data["removal_cost_se"] == 0.1


def test_an_unscheduled_counterfactual_says_so() -> None:
    run, events = executor(FakeEngine(), ExecutorConfig(counterfactual_every=2))
    run.reset([spec()])
    run.step([germinate("a")])
    (said,) = of(events, T.COUNTERFACTUAL_UNAVAILABLE)
    assert said.data == {"reason": "not_scheduled"}
    run.step([WAITING])
    assert len(of(events, T.COUNTERFACTUAL_COMPUTED)) == 1


def test_an_illegal_command_fails_with_its_reason_and_changes_nothing() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec()])
    (report,) = run.step([Decision(FactoredAction(Op.FOSSILIZE, "a"), "no reason")])
    assert report.outcome.illegal and "DORMANT" in (report.outcome.why_not or "")
    (failed,) = of(events, T.COMMAND_FAILED)
    assert failed.data["why_not"] == report.outcome.why_not
    assert report.view.live_seeds == 0


def test_a_command_leaves_its_reason_and_evidence() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec()])
    run.step([germinate("a")])
    (issued,) = of(events, T.COMMAND_ISSUED)
    assert issued.data == {
        "op": "GERMINATE",
        "slot": "a",
        "blueprint": "good",
        "blend": "linear",
        "alpha_target": 1.0,
        "tempo": 1,
        "reason": "try it",
        "evidence": {"gain": 1.0},
    }


def test_what_deciding_took_is_on_each_rows_bill() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec(0), spec(1)])
    run.step([Decision(WAIT, "", macs=5), WAITING])
    run.finish([Decision(WAIT, "", macs=7), WAITING])
    assert [event.data["policy_macs"] for event in of(events, T.COMPUTE_SPENT)] == [12, 0]


def test_a_sick_epoch_is_rolled_back_and_not_recorded() -> None:
    run, events = executor(FakeEngine(poison=[3]))
    run.reset([spec()])
    for _ in range(2):
        run.step([WAITING])
    (report,) = run.step([WAITING])
    assert report.rolled_back and report.view.epoch == 3
    assert len(report.view.metric_history) == 2, "what was measured of the state that is gone is not kept"
    (back,) = of(events, T.GOVERNOR_ROLLBACK)
    assert back.data["to_epoch"] == 2 and back.data["cause"] == "external"
    (after,) = run.step([WAITING])
    assert not after.rolled_back and math.isfinite(after.readout.loss)


def test_a_suspect_is_quarantined() -> None:
    run, events = executor(FakeEngine(poison=[3, 4]))
    run.reset([spec()])
    run.step([WAITING])
    run.step([WAITING])
    (report,) = run.step([germinate("a")])
    assert report.rolled_back and not report.view.vetoed
    (report,) = run.step([germinate("a")])
    assert report.rolled_back and "a" in report.view.vetoed
    assert [back.data.get("suspect") for back in of(events, T.GOVERNOR_ROLLBACK)] == [None, "GERMINATE a"]


def test_a_run_that_fails_again_and_again_fails_plainly() -> None:
    run, _ = executor(FakeEngine(poison=range(2, 12)))
    run.reset([spec(epochs=12)])
    with pytest.raises(EsperError, match="after 3 rollbacks"):
        for _ in range(12):
            run.step([WAITING])


def test_what_did_not_earn_its_place_is_out_before_the_test() -> None:
    run, _ = executor(FakeEngine())
    run.reset([spec(0), spec(1)])
    run.step([germinate("a"), germinate("a")])
    advance = Decision(FactoredAction(Op.ADVANCE, "a"), "")
    run.step([advance, advance])
    kept, dropped = run.finish([Decision(FactoredAction(Op.FOSSILIZE, "a"), ""), WAITING])
    assert kept.test_metric == pytest.approx(70.0) and dropped.test_metric == pytest.approx(50.1)
    assert [slot.stage for slot in dropped.view.slots] == [SeedStage.DORMANT] * 2
    assert dropped.validation_metric == dropped.test_metric


def test_without_a_test_split_no_test_figure_is_told() -> None:
    run, events = executor(FakeEngine(), ExecutorConfig(test=False))
    run.reset([spec()])
    run.step([WAITING])
    (result,) = run.finish()
    assert result.test_metric is None
    data: dict[str, Any] = of(events, T.EPISODE_ENDED)[0].data
    assert "test_metric" not in data and data["validation_metric"] == 50.0


def test_shapley_values_come_after_the_last_epoch() -> None:
    run, events = executor(FakeEngine())
    run.reset([spec(epochs=3)])
    run.step([germinate("a", "good")])
    run.step([germinate("b", "harmful")])
    for slot in "ab":
        run.engine.apply([0], [FactoredAction(Op.ADVANCE, slot)])
    run.step([WAITING])
    found = {e.slot_id: e.data["shapley"] for e in of(events, T.COUNTERFACTUAL_COMPUTED) if "shapley" in e.data}
    assert found == pytest.approx({"a": 20.0, "b": -10.0})
