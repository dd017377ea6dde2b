from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.karn import courses, curves
from esper.karn.aggregator import fold
from esper.karn.curves import THROUGHPUT, RunCurves, overlaid, run_curves, sampled
from esper.karn.fold_seed import EMPTY
from esper.karn.parts import number
from esper.karn.snapshot import build
from esper.leyline import DataError
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from karn import demo
from karn.journals import RUN_ID, write_run
from karn.streams import Recorder, begin, begin_episode, epoch_done, story


def chart(found: RunCurves, title: str) -> dict[str, dict[int, object]]:
    (one,) = (one for one in found.charts if one.title == title)
    return {line.label: dict(zip(line.curve.at, line.curve.last, strict=True)) for line in one.lines}


def test_every_value_of_the_newest_episode_is_the_journals(tmp_path: Path) -> None:
    events = story()
    found = run_curves(write_run(tmp_path, events))
    assert (found.episode, found.episodes, found.tracks, found.drawn) == (0, [0], 2, 2)
    told = chart(found, "metric")
    for env in (0, 1):
        ends = [e for e in events if e.env_id == env and e.event_type is T.EPOCH_COMPLETED]
        said = {e.epoch: number(e.data["validation_metric"]) for e in ends if "validation_metric" in e.data}
        assert told[f"grown {env}"] == said
    costs = chart(found, "removal cost of each seed")
    measured = [e for e in events if e.event_type is T.COUNTERFACTUAL_COMPUTED and "removal_cost" in e.data]
    assert costs == {"grown 0: conv3 in blocks_1": {e.epoch: e.data["removal_cost"] for e in measured}}


def test_of_a_run_that_grows_one_reading_is_kept(tmp_path: Path) -> None:
    events, kept = story(), courses._held.cache_info().currsize
    with JournalWriter(tmp_path, RUN_ID) as writer:
        readings = []
        for part in (events[:30], events[30:]):
            for event in part:
                writer(event)
            writer.flush()
            readings.append(courses.read_courses(tmp_path))
            assert courses.read_courses(tmp_path) is readings[-1]
    assert readings[0] != readings[1] == courses._read(tmp_path)
    assert courses._held.cache_info().currsize == min(64, kept + 1)


UPDATE = {
    **{"lr": 0.001, "update_time_ms": 9.0, "steps": 12, "epochs_run": 2, "optimizer_steps": 4, "skipped_steps": 0},
    **{"stopped_by_kl": False, "policy_loss": 0.1, "value_loss": 0.2, "entropy": 2.0, "clip_fraction": 0.1},
    **{"ratio_min": 0.9, "ratio_max": 1.1, "stale_log_prob": 0.0, "value_mean": 0.0, "return_mean": 1.0},
    **{"return_std": 1.0, "advantage_mean": 0.0, "advantage_std": 1.0},
}


def learner(rounds: int, envs: int = 2) -> Recorder:
    rec = Recorder()
    begin(rec, envs=envs)
    rec.events[0].data |= {"kind": "ppo", "policy": "ppo"}
    for at in range(rounds):
        for env in range(envs):
            begin_episode(rec, env, episode=at)
            epoch_done(rec, env, 1, 50.0 + at, episode=at, train_loss=1.0, learning_rate=0.01)
            done = {"kind": "last_action", "op": "WAIT", "masked": {}, "success": True, "illegal": False}
            rec.say(T.ANALYTICS_SNAPSHOT, env_id=env, episode=at, epoch=1, reward=0.5 * at, objective=1.0, **done)
        heads = {"op": {"entropy": 1.0 / (at + 1), "most": 1.8, "share": 1.0}}
        rec.say(T.PPO_UPDATE_COMPLETED, round=at + 1, kl=0.01 * at, heads=heads, **UPDATE)
    return rec


def test_a_learners_rounds_and_the_episode_that_is_asked_for(tmp_path: Path) -> None:
    path = write_run(tmp_path, learner(3).events)
    found = run_curves(path, 1)
    assert found.episode == 1 and found.episodes == [0, 1, 2]
    assert chart(found, "KL of the update, nats") == {"": {1: 0.0, 2: 0.01, 3: 0.02}}
    assert chart(found, "entropy of each head, nats")["op"] == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert chart(found, "reward") == {"grown 0": {1: 0.5}, "grown 1": {1: 0.5}}
    assert chart(found, "loss").keys() == {
        f"grown {env} {what}" for env in (0, 1) for what in ("validation", "training")
    }
    assert [one.x for one in found.charts][:4] == ["round"] * 3 + ["epoch"] and found.charts[3].title == "metric"
    asked = run_curves(path, 1, ["metric", "reward", "no such chart"])
    assert asked.charts == [one for one in found.charts if one.title in ("metric", "reward")]


def test_what_is_not_drawn_is_counted_and_what_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, learner(1, envs=curves.TRACKS + 5).events)
    found = run_curves(path)
    assert (found.tracks, found.drawn) == (curves.TRACKS + 5, curves.TRACKS)
    assert len(chart(found, "metric")) == curves.TRACKS
    monkeypatch.setattr(courses, "LARGEST", 10)
    with pytest.raises(DataError, match="its journal is long"):
        run_curves(path)


@given(st.lists(st.floats(width=32), max_size=60), st.integers(1, 9))
def test_a_long_line_keeps_its_extremes_its_last_value_and_its_count(values: list[float], most: int) -> None:
    curve = sampled(list(enumerate(values)), most, None)
    assert curve.seen == len(values) and len(curve.at) <= most
    if len(values) <= most:
        assert curve.last == [number(value) for value in values] and not curve.low and not curve.high
        return
    assert sum(curve.nans) == sum(map(math.isnan, values))
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) == len(values):
        assert min(curve.low) == min(values) and max(curve.high) == max(values)  # type: ignore[type-var]
        assert curve.last[-1] == values[-1] and curve.at[-1] == len(values) - 1


def test_the_history_of_what_limits_a_run_is_what_its_faces_showed(tmp_path: Path) -> None:
    events = [event for part in demo.epochs(count=46, start=1e9) for event in part]
    for event in events:
        if event.data.get("process_cores") == 0.4:
            event.data["cpu_share"] = 0.2  # nobody else keeps the machine busy
    found = run_curves(write_run(tmp_path, events))
    samples = [place for place, event in enumerate(events) if event.data.get("kind") == "host_vitals"]
    at = {round((events[place].timestamp or 0.0) - (events[0].timestamp or 0.0)): place for place in samples}
    assert chart(found, "cores in use")["the run"] == {
        second: events[place].data["process_cores"] for second, place in at.items()
    }
    for second, place in at.items():
        (told,) = (one for one in found.bounds if one.since < second <= one.until)
        assert build(fold(events[: place + 1]), 0.0).bound.kind == told.kind
    assert [one.kind for one in found.bounds] == ["compute", "sync", "compute"]
    assert all(before.until == after.since for before, after in zip(found.bounds, found.bounds[1:], strict=False))


def test_the_stages_of_a_seed_are_the_swimlanes(tmp_path: Path) -> None:
    events = [event for part in demo.epochs(count=46, start=1e9) for event in part]
    found, state = run_curves(write_run(tmp_path, events)), fold(events)
    assert found.seeds
    for life in found.seeds:
        slot = state.environments[life.env].slots[life.name.rpartition(" in ")[2]]
        lane = [one for one in slot.swimlane if one.stage not in EMPTY]
        assert [(one.stage, one.since, one.until) for one in life.stretches] == [
            (one.stage, one.since, one.until) for one in lane
        ]


def test_many_runs_have_one_hue_each_and_means_with_extremes(tmp_path: Path) -> None:
    events = story()
    first, second = write_run(tmp_path, events, run_id="a"), write_run(tmp_path, learner(3).events, run_id="b")
    (tmp_path / "c").mkdir()
    found = overlaid([first, second, tmp_path / "c"])
    assert found.runs == ["a", "b", "c"] and set(found.left_out) == {"c"}
    hues = {line.label.partition(":")[0]: line.hue for one in found.charts for line in one.lines}
    assert hues == {"a": 0, "b": 1}
    (metric,) = (one for one in found.charts if one.title == "metric")
    told = {line.label: line.curve for line in metric.lines}["a: grown, mean of 2"]
    for place, epoch in enumerate(told.at):
        values = [
            event.data["validation_metric"]
            for event in events
            if event.event_type is T.EPOCH_COMPLETED and event.epoch == epoch and "validation_metric" in event.data
        ]
        assert told.last[place] == number(sum(values) / len(values))
        finite = [value for value in values if value == value]
        assert (told.low[place], told.high[place]) == (number(min(finite)), number(max(finite)))


def test_lines_that_are_not_drawn_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "LINES", 3)
    found = overlaid([write_run(tmp_path, learner(2).events, run_id=name) for name in "abcde"])
    (metric,) = (one for one in found.charts if one.title == "metric")
    assert (len(metric.lines), metric.of) == (3, 5)


def test_throughput_counts_all_environments_together(tmp_path: Path) -> None:
    events = [event for part in demo.epochs(envs=6, count=46, start=1e9) for event in part]
    ((label, told),) = chart(run_curves(write_run(tmp_path, events)), THROUGHPUT).items()
    assert label == "" and len(told) > 20
    assert all(value == pytest.approx(3.0, rel=0.1) for value in list(told.values())[1:]), "6 epochs in 2 s"
