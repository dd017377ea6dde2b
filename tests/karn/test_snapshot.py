from __future__ import annotations

import copy
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.karn import schema
from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.schema import EnvironmentDetail, Snapshot
from esper.karn.snapshot import Builder, build, encode
from esper.leyline import TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from karn.streams import START, Recorder, begin, begin_episode, epoch_done, gate, random_run, runs, story


@given(runs(), st.floats(0, 1000))
@settings(max_examples=15)
def test_a_builder_with_a_memory_says_the_same(events: list[TelemetryEvent], ahead: float) -> None:
    builder, state = Builder(), fold([])
    now = START
    for event in events[::7]:
        now = (event.timestamp or now) + ahead
        fold([event], state)
        assert encode(builder.build(state, now)) == encode(build(state, now))


@given(runs())
@settings(max_examples=10)
def test_bytes_decode_to_the_schema_and_hold_no_null(events: list[TelemetryEvent]) -> None:
    state = fold(events)
    data = encode(build(state, START))
    assert encode(msgspec.json.decode(data, type=Snapshot)) == data
    assert b"null" not in data
    for env_id in state.environments:
        detail = encode(build_detail(state, env_id, START))
        assert encode(msgspec.json.decode(detail, type=EnvironmentDetail)) == detail
        assert b"null" not in detail


def test_what_was_shown_stays_as_the_fold_goes_on() -> None:
    state, builder, shown = fold([]), Builder(), []
    for event in random_run(3, epochs=12) + story():
        fold([event], state)
        details = [build_detail(state, env, START) for env in state.environments]
        shown += [(view, encode(view)) for view in (builder.build(state, START), *details)]
    changed = [view for view, data in shown[::5] if encode(view) != data]
    assert not changed


def test_a_builder_draws_an_environment_anew_only_when_something_was_said_of_it() -> None:
    events = story()
    last = max(at for at, event in enumerate(events) if event.env_id == 0)
    state, builder = fold(events[:last]), Builder()
    drawn = {env: build_detail(state, env, START, builder).network for env in (0, 1)}
    assert all(build_detail(state, env, START + 9, builder).network is network for env, network in drawn.items())
    assert builder.build(state, START).network is drawn[0], "the run is shown by the first one"
    fold(events[last : last + 1], state)
    now = {env: build_detail(state, env, START, builder).network for env in (0, 1)}
    assert now[0] is not drawn[0] and now[0] == build_detail(state, 0, START).network
    assert now[1] is drawn[1]
    state.run.slots.append("another")
    assert build_detail(state, 1, START, builder).network == build_detail(state, 1, START).network != drawn[1]


def test_ended_comes_only_from_an_end_event() -> None:
    events = story()
    last = events[-1].timestamp or 0.0
    assert build(fold(events), last + 9999).run.text == "ended, completed"
    run = build(fold(events[:-1]), (events[-2].timestamp or 0.0) + 41).run
    assert (run.state, run.text) == ("silent", "no event for 41 s")
    assert build(fold([]), 0.0).run.state == "waiting"


def test_absent_nan_and_zero_are_three_things() -> None:
    rec = Recorder()
    begin(rec)
    for env, loss in ((0, {}), (1, {"validation_loss": float("nan")}), (2, {"validation_loss": 0.0})):
        begin_episode(rec, env)
        epoch_done(rec, env, 1, None, **loss)
    rows = json.loads(encode(build(fold(rec.events), START)))["environments"]
    assert "loss" not in rows["0"]
    assert [rows[env]["loss"]["value"] for env in ("1", "2")] == ["NaN", 0.0]


def test_old_facts_are_marked_stale() -> None:
    shown = build_detail(fold(story()), 0, START)
    seed = shown.slots["blocks_1"].seed
    assert isinstance(seed, schema.Seed)
    assert seed.facts["probe_gain"].stale and not seed.facts["removal_cost"].stale


def test_why_a_seed_is_blocked_in_words() -> None:
    events = story()
    at = next(i for i, e in enumerate(events) if e.event_type is T.SEED_GATE_EVALUATED and e.epoch == 9)
    seed = build_detail(fold(events[: at + 1]), 0, START).slots["blocks_1"].seed
    assert isinstance(seed, schema.Seed)
    assert seed.blocked == "G5 keeps it from FOSSILIZED: removal cost 0.4, needs >= 0.5 (epoch 9)"


def test_a_check_without_a_measurement_says_so() -> None:
    rec = Recorder()
    begin(rec)
    from esper.leyline import SeedStage

    gate(rec, 0, 3, "stem", "s", SeedStage.BLENDING, False, id="probe_gain_loss", measured=None, threshold=0.0)
    chip_gate = build_detail(fold(rec.events), 0, START).slots["stem"].seed
    assert isinstance(chip_gate, schema.Seed)
    (check,) = chip_gate.gates[0].checks
    assert check.text == "probe gain loss was not measured, needs >= 0"


def test_worst_environment_first_and_stale_from_the_clock() -> None:
    events = story()[:-3]
    state = fold(events)
    now = state.last_time or 0.0
    assert build(state, now).devices[0].environments == [1, 0]
    late = build(state, now + 100)
    assert [factor.name for factor in late.environments["0"].factors] == ["stale"]
    assert late.environments["0"].level in ("watch", "bad")


def test_environments_of_each_device_the_worst_first() -> None:
    state = fold(story()[:-3])
    for env, device in ((0, "cuda:1"), (1, "cuda:0")):
        state.environments[env].device = device
    twin = copy.deepcopy(state.environments[0])
    twin.env, state.environments[2] = 2, twin
    twin.rank = 0.7
    shot = build(state, state.last_time or 0.0)
    assert [(group.device, group.environments, group.level) for group in shot.devices] == [
        ("cuda:0", [1], "watch"),
        ("cuda:1", [2, 0], "bad"),
    ]
    assert shot.levels == {"bad": 1, "watch": 1, "ok": 1}


def test_progress_and_eta() -> None:
    events = story()
    half = [event for event in events if (event.epoch or 0) <= 6 and event.event_type is not T.TRAINING_ENDED]
    progress = build(fold(half), START).run.progress
    assert (progress.epochs_done, progress.epochs_total, progress.share) == (12, 24, 0.5)
    assert progress.eta_seconds == pytest.approx((half[-1].timestamp or 0) - (half[0].timestamp or 0))


def test_heads_that_an_op_does_not_consume_are_listed() -> None:
    (action,) = build_detail(fold(story()), 0, START).actions
    assert action.unused == [] and action.evidence == {"plateau_epochs": 3.0}


def test_unknown_environment() -> None:
    with pytest.raises(UsageError, match="unknown environment '7'; legal: 0, 1"):
        build_detail(fold(story()), 7, START)


def test_json_schema_holds_every_part() -> None:
    exported = schema.json_schema()
    views = [view for shared in schema.Shared.__subclasses__() for view in shared.__subclasses__()]
    parts = {cls.__name__ for cls in [*schema.Part.__subclasses__(), *views] if cls.__module__ == schema.__name__}
    assert parts <= set(exported["$defs"])
    assert "required" in exported["$defs"]["EnvironmentRow"]
    assert "metric" not in exported["$defs"]["EnvironmentRow"]["required"]
