"""The epoch cycle on an engine whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine

from esper.leyline import (
    REGISTRY,
    WAIT,
    Blend,
    DataError,
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
from esper.tolaria.delivery import better
from esper.tolaria.event_writer import UNPROVEN
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


def test_which_state_is_the_last_good_one_is_told_with_the_epoch() -> None:
    run, events = executor(FakeEngine(poison=[3]))
    run.reset([spec()])
    run.step([WAITING])
    run.step([WAITING])
    saved = run.state()
    run.step([WAITING])
    run.step([WAITING])
    (kept,) = of(events, T.GOVERNOR_SNAPSHOT)
    assert kept.data["of_epoch"] == 0 == kept.epoch
    assert [event.data["last_good_epoch"] for event in of(events, T.EPOCH_COMPLETED)] == [1, 2, 2, 4]
    again, told = executor(FakeEngine(poison=[3]))
    again.load(saved)
    again.step([WAITING])
    assert [event.data["last_good_epoch"] for event in of(told, T.EPOCH_COMPLETED)] == [2]


def test_the_next_good_state_is_not_copied_beside_the_last_one() -> None:
    held: list[Any] = []

    class Looking(FakeEngine):
        def network(self, env: int) -> dict[str, Any]:
            held.append(run._envs[env].governor.state()["plain"]["good_epoch"])
            return super().network(env)

        def state(self, env: int) -> dict[str, Any]:
            held.append(run._envs[env].governor.state()["plain"]["good_epoch"])
            return super().state(env)

    run, _ = executor(Looking(), ExecutorConfig(deliver="best"))
    run.reset([spec()])
    run.step([WAITING])
    run.step([WAITING])
    assert len(held) >= 4 and set(held) == {None}
    assert run._envs[0].governor.state()["plain"]["good_epoch"] == 2
    run.finish()
    assert run._envs[0].governor.state()["plain"]["good_epoch"] is None, "nothing is rolled back any more"


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


BEST = ExecutorConfig(deliver="best")
ADVANCE = Decision(FactoredAction(Op.ADVANCE, "a"), "")
PRUNE = Decision(FactoredAction(Op.PRUNE, "a"), "")


def ended(events: list[TelemetryEvent]) -> dict[str, Any]:
    (event,) = of(events, T.EPISODE_ENDED)
    msgspec.convert(event.data, REGISTRY[T.EPISODE_ENDED].payload, strict=True)
    return event.data


def test_what_is_delivered_is_as_good_as_the_best_that_was_validated() -> None:
    run, events = executor(FakeEngine(proves=()), BEST)
    run.reset([spec()])
    for decision in (germinate("a"), ADVANCE, PRUNE, WAITING):
        run.step([decision])
    assert [e.data["validation_metric"] for e in of(events, T.EPOCH_COMPLETED)] == [50.0, 70.0, 50.0, 50.0]
    (result,) = run.finish([WAITING])
    assert (result.validation_metric, result.test_metric) == (70.0, 70.0)
    assert (result.delivered, result.delivered_epoch, result.view.epoch) == ("best", 2, 4)
    told = ended(events)
    assert (told["delivered"], told["delivered_epoch"], told["epochs"]) == ("best", 2, 4)
    (seed,) = told["seeds"]
    assert seed["stage"] == "HOLDING" and "not proven" in seed["reason"]


def test_where_policies_are_paid_the_last_state_counts_and_nothing_is_kept_or_told() -> None:
    run, events = executor(FakeEngine(proves=()))
    run.reset([spec()])
    for decision in (germinate("a"), ADVANCE, WAITING):
        run.step([decision])
    (result,) = run.finish([WAITING])
    assert result.validation_metric == 50.0 and not {"delivered", "delivered_epoch"} & set(ended(events))
    assert "best" not in run.state()["plain"]["row0"]


def test_a_seed_that_holds_in_the_end_is_asked_for_its_proof() -> None:
    for proves, stage in ((("a",), "FOSSILIZED"), ((), "HOLDING")):
        run, events = executor(FakeEngine(proves=proves), BEST)
        run.reset([spec()])
        for decision in (germinate("a"), ADVANCE):
            run.step([decision])
        (result,) = run.finish([WAITING])
        assert result.validation_metric == 70.0, "without it the metric would be 50"
        assert [seed["stage"] for seed in ended(events)["seeds"]] == [stage]
        assert result.delivered == "last"
        assert [seed.get("reason") for seed in ended(events)["seeds"]] == [None if proves else UNPROVEN]


def test_in_the_end_each_unproven_seed_is_looked_at_by_itself() -> None:
    """The last network, both seeds blended in, is worth 60; without any it is worth 50, and neither is delivered."""
    for useless, kept in (("harmful", 70.0), ("useless", 70.0), ("good", 90.0)):
        run, events = executor(FakeEngine(proves=()), BEST)
        run.reset([spec()])
        run.step([germinate("a", "good")])
        run.step([germinate("b", useless)])
        for slot in "ab":
            run.engine.apply([0], [FactoredAction(Op.ADVANCE, slot)])
        run.step([WAITING])
        (result,) = run.finish([WAITING])
        assert (result.validation_metric, result.delivered, result.delivered_epoch) == (kept, "last", 3)
        assert [seed["slot_id"] for seed in ended(events)["seeds"]] == (["a", "b"] if useless == "good" else ["a"])


def test_of_many_unproven_seeds_the_weakest_are_left_out_together() -> None:
    """What is known of each is nothing, so that they are taken in network order: the first two are harmful."""
    names = "abcdefgh"
    engine = FakeEngine(slots=names, proves=())
    run, events = executor(engine, BEST)
    run.reset([spec()])
    grown = [germinate(name, "harmful" if name in "ab" else "good") for name in names]
    run.step([replace(grown[0], also=tuple(grown[1:]))])
    for slot in names:
        run.engine.apply([0], [FactoredAction(Op.ADVANCE, slot)])
    run.step([WAITING])
    asked: list[int] = []
    evaluate = engine.evaluate

    def counting(envs: Any, configs: Any, split: str = "validation", settled: Any = None) -> Any:
        asked.extend([len(configs[0])] if split == "validation" else [])
        return evaluate(envs, configs, split, settled)

    engine.evaluate = counting  # type: ignore[method-assign]
    (result,) = run.finish([WAITING])
    assert asked == [5], "as it is, and without one, two, four and all"
    assert (result.validation_metric, result.delivered) == (170.0, "last")
    assert [seed["slot_id"] for seed in ended(events)["seeds"]] == list("cdefgh")


def test_the_gate_is_not_asked_twice_and_the_policys_last_word_comes_first() -> None:
    run, events = executor(FakeEngine(proves=()), BEST)
    run.reset([spec()])
    for decision in (germinate("a"), ADVANCE):
        run.step([decision])
    run.finish([Decision(FactoredAction(Op.FOSSILIZE, "a"), "it pays")])
    assert len(of(events, T.COMMAND_FAILED)) == 1
    run, events = executor(FakeEngine(), BEST)
    run.reset([spec()])
    for decision in (germinate("a", "harmful"), ADVANCE):
        run.step([decision])
    (result,) = run.finish([PRUNE])
    assert (result.validation_metric, result.delivered) == (50.0, "last"), "nothing better was seen"


def test_equal_metrics_are_told_apart_by_the_loss_and_nan_is_worst() -> None:
    assert better((50.0, 1.0), (50.0, 1.1), METRIC) and not better((50.0, 1.1), (50.0, 1.1), METRIC)
    assert better((49.0, 1.0), (math.nan, 0.1), METRIC) and not better((math.nan, 0.1), None, METRIC)
    error = Metric("error", "", higher_is_better=False)
    assert better((49.0, 1.0), (50.0, 1.0), error) and not better((51.0, 0.0), (50.0, 1.0), error)


def test_an_epoch_that_was_rolled_back_is_never_the_best() -> None:
    run, events = executor(FakeEngine(poison=[2], proves=()), BEST)
    run.reset([spec()])
    for decision in (germinate("a"), ADVANCE, WAITING):
        run.step([decision])
    assert len(of(events, T.GOVERNOR_ROLLBACK)) == 1
    (result,) = run.finish([WAITING])
    assert result.validation_metric == 50.0


def test_the_best_state_survives_a_checkpoint_and_older_ones_have_none() -> None:
    def begun() -> tuple[Executor, list[TelemetryEvent]]:
        run, events = executor(FakeEngine(proves=()), BEST)
        run.reset([spec()])
        for decision in (germinate("a"), ADVANCE, PRUNE):
            run.step([decision])
        return run, events

    run, _ = begun()
    state = run.state()
    resumed, events = executor(FakeEngine(proves=()), BEST)
    resumed.load(state)
    assert resumed.finish([WAITING])[0].scores() == run.finish([WAITING])[0].scores()

    run, _ = begun()
    state = run.state()
    del state["plain"]["row0"]["best"]
    older, events = executor(FakeEngine(proves=()), BEST)
    older.load(state)
    (result,) = older.finish([WAITING])
    assert (result.validation_metric, result.delivered) == (50.0, "last")
    del state["plain"]["row0"]["governor"]
    with pytest.raises(DataError, match="env 0 has the parts engine, own"):
        older.load(state)


def test_a_run_that_is_broken_off_leaves_the_best_so_far_without_another_look() -> None:
    run, events = executor(FakeEngine(), BEST)
    assert run.salvage("failed") is None
    run.reset([spec()])
    assert run.salvage("failed") is None
    for decision in (germinate("a"), ADVANCE, PRUNE):
        run.step([decision])
    run.begin([WAITING])
    results = run.salvage("interrupted")
    assert results is not None and results[0].validation_metric == 70.0 and results[0].test_metric is None
    told = ended(events)
    assert (told["status"], told["epochs"], told["delivered_epoch"]) == ("interrupted", 3, 2)
    assert "test_metric" not in told
    assert run.salvage("failed") is None, "an episode ends once"
    run.reset([spec()])
    run.step([WAITING])
    run.finish([WAITING])
    assert run.salvage("failed") is None
