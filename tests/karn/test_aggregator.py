from __future__ import annotations

import copy
import subprocess
import sys

from hypothesis import given, settings

from esper.karn import anomaly
from esper.karn import state as states
from esper.karn.aggregator import FEED, HANDLERS, apply, fold
from esper.karn.state import EPOCH_FACTS, Measured, RunState
from esper.leyline import SeedStage, TelemetryEvent, TelemetryEventType
from esper.leyline import TelemetryEventType as T
from karn.streams import Recorder, begin, begin_episode, epoch_done, gate, random_run, runs, story


def test_every_event_type_has_a_handler() -> None:
    assert set(HANDLERS) == set(TelemetryEventType)


def test_story_seed() -> None:
    state = fold(story())
    slot = state.environments[0].slots["blocks_1"]
    assert slot.stage == "FOSSILIZED" and slot.seed is not None
    seed = slot.seed
    assert {name: record.passed for name, record in seed.gates.items()} == {"G0": True, "G2": True, "G5": True}
    assert (seed.gates["G2"].evaluations, seed.gates["G2"].failures) == (2, 1)
    assert seed.facts["removal_cost"] == Measured(0.15 * 12, 12, seed.facts["removal_cost"].time)
    assert seed.facts["probe_gain"].epoch == 5
    assert "gradient_health" not in seed.facts
    assert [span.stage for span in slot.swimlane] == ["DORMANT", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"]


def test_story_trouble_and_end() -> None:
    state = fold(story())
    environment = state.environments[1]
    assert environment.panics == [8] and environment.rollbacks == 1
    assert [event.event_type for event in state.governor] == [T.GOVERNOR_PANIC, T.GOVERNOR_ROLLBACK]
    assert state.run.end_status == "completed"
    assert state.census["conv3"].fossilized == 1
    (action,) = state.environments[0].actions
    assert (action.op, action.outcome, action.reason) == ("GERMINATE", "executed", "plateau of 3 epochs")
    assert (action.blueprint, action.blend, action.alpha_target, action.tempo) == ("conv3", "cosine", 0.7, 5)


def test_non_finite_fields_are_named_and_clear_up() -> None:
    events = story()
    at = next(i for i, event in enumerate(events) if event.event_type is T.GOVERNOR_PANIC)
    state = fold(events[:at])
    assert state.environments[1].non_finite == ["train_loss", "validation_loss"]
    assert state.environments[1].anomaly.evidence == {"non_finite": 2.0}
    assert fold(events[at:], state).environments[1].non_finite == []


@settings(max_examples=20)
@given(runs())
def test_what_an_epoch_does_not_say_is_known_from_the_last_that_did(events: list[TelemetryEvent]) -> None:
    slow: dict[tuple[int | None, str], Measured] = {}
    for event in events:
        if event.event_type is T.EPISODE_STARTED:
            slow = {key: fact for key, fact in slow.items() if key[0] != event.env_id}
        if event.event_type is T.EPOCH_COMPLETED:
            for name in EPOCH_FACTS:
                if name in event.data:
                    slow[event.env_id, name] = Measured(event.data[name], event.epoch, event.timestamp)
    found = {
        (env, name): fact
        for env, environment in fold(events).environments.items()
        for name, fact in environment.facts.items()
        if name in EPOCH_FACTS
    }
    assert repr(sorted(found.items())) == repr(sorted(slow.items()))


def test_a_run_without_an_end_event_has_not_ended() -> None:
    assert fold(story()[:-1]).run.end_status is None


def test_a_new_episode_forgets_what_the_last_one_measured() -> None:
    state = fold(story())
    rec = Recorder()
    begin_episode(rec, 0, episode=1)
    fold(rec.events, state)
    assert state.environments[0].facts == {} and state.environments[0].slots == {}
    assert state.leaderboard


def test_a_value_of_unknown_age_has_no_epoch() -> None:
    rec = Recorder()
    begin(rec)
    common = {"env_id": 0, "epoch": 4, "slot_id": "stem", "seed_id": "s"}
    rec.say(T.SEED_STAGE_CHANGED, **common, from_="TRAINING", to="BLENDING", gradient_health=0.9)
    facts = fold(rec.events).environments[0].slots["stem"].seed.facts  # type: ignore[union-attr]
    assert facts["gradient_health"] == Measured(0.9, None, None)


def test_an_older_measurement_does_not_replace_a_newer_one() -> None:
    rec = Recorder()
    common = {"env_id": 0, "slot_id": "stem", "seed_id": "s"}
    moved = {"from_": "TRAINING", "to": "BLENDING"}
    rec.say(T.SEED_STAGE_CHANGED, **common, epoch=7, **moved, removal_cost=2.0, removal_cost_epoch=7)
    rec.say(T.SEED_STAGE_CHANGED, **common, epoch=8, **moved, removal_cost=1.0, removal_cost_epoch=5)
    facts = fold(rec.events).environments[0].slots["stem"].seed.facts  # type: ignore[union-attr]
    assert facts["removal_cost"].value == 2.0


def test_lost_events_are_counted_from_the_sequence() -> None:
    events = story()
    del events[5:8]
    assert fold(events).producers["train"].missing == 3


def test_drops_add_up() -> None:
    rec = Recorder()
    for count in (3, 4):
        rec.say(T.TELEMETRY_DROPPED, sink="journal", event_type="ANALYTICS_SNAPSHOT", count=count, reason="queue_full")
    (drop,) = fold(rec.events).drops
    assert drop.count == 7


def test_an_event_that_does_not_say_where_is_counted() -> None:
    event = TelemetryEvent(event_type=T.SEED_PRUNED, data={"from": "TRAINING", "reason": "x", "age_epochs": 1})
    assert apply(RunState(), event).unplaced == 1


def test_feed_is_bounded_and_warnings_outlive_it() -> None:
    rec = Recorder()
    gate(rec, 0, 1, "stem", "s", SeedStage.GERMINATED, False).severity = "warning"
    for epoch in range(5 * FEED):
        gate(rec, 0, epoch, "stem", "s", SeedStage.GERMINATED, False)
    state = fold(rec.events)
    assert len(state.feed) < 2 * FEED
    assert [event.severity for event in state.alarms] == ["warning"]


@given(runs())
@settings(max_examples=15)
def test_state_round_trips_and_folding_continues_from_it(events: list[TelemetryEvent]) -> None:
    cut = len(events) // 2
    kept = states.encode(fold(events[:cut]))
    continued = fold(events[cut:], states.decode(kept))
    assert states.encode(continued) == states.encode(fold(events))


def test_folding_does_not_change_events() -> None:
    events = story()
    before = repr(events)
    state = fold(events)
    fold(copy.deepcopy(events), state)
    assert repr(events) == before


def test_memory_is_bounded() -> None:
    short, long = (len(states.encode(fold(random_run(3, envs=2, epochs=epochs)))) for epochs in (400, 1600))
    assert long < 1.5 * short


def test_loads_no_torch_and_no_trainer() -> None:
    """Every module of karn, in a process of its own."""
    code = (
        "import importlib, pkgutil, sys, esper.karn\n"
        "for module in pkgutil.walk_packages(esper.karn.__path__, 'esper.karn.'):\n"
        "    importlib.import_module(module.name)\n"
        "bad = ('torch', 'esper.kasmina', 'esper.tasks', 'esper.tolaria', 'esper.tamiyo', 'esper.simic')\n"
        "sys.exit(', '.join(name for name in bad if name in sys.modules) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_stalled_metric_scores() -> None:
    rec = Recorder()
    begin(rec, max_epochs=60)
    begin_episode(rec, 0, max_epochs=60)
    for epoch in range(1, 41):
        epoch_done(rec, 0, epoch, 50.0 + min(epoch, 8))
    (factor,) = anomaly.factors(fold(rec.events).environments[0].anomaly)
    assert (factor.name, factor.measured, factor.threshold, factor.level) == ("stalled", 32, 10, 1.0)
