from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.karn import curves
from esper.karn.curves import RunCurves, run_curves, sampled
from esper.karn.parts import number
from esper.leyline import DataError
from esper.leyline import TelemetryEventType as T
from karn.journals import write_run
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
    assert chart(found, "KL of the update, nats") == {"KL of the update, nats": {1: 0.0, 2: 0.01, 3: 0.02}}
    assert chart(found, "entropy, nats")["op"] == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert chart(found, "reward") == {"grown 0": {1: 0.5}, "grown 1": {1: 0.5}}
    assert chart(found, "loss").keys() == {
        f"grown {env} {what}" for env in (0, 1) for what in ("validation", "training")
    }
    assert [one.x for one in found.charts][:4] == ["round"] * 3 + ["epoch"] and found.charts[3].title == "metric"


def test_what_is_not_drawn_is_counted_and_what_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, learner(1, envs=curves.TRACKS + 5).events)
    found = run_curves(path)
    assert (found.tracks, found.drawn) == (curves.TRACKS + 5, curves.TRACKS)
    assert len(chart(found, "metric")) == curves.TRACKS
    monkeypatch.setattr(curves, "LARGEST", 10)
    with pytest.raises(DataError, match="its journal is long"):
        run_curves(path)


@given(st.lists(st.floats(width=32), max_size=60), st.integers(1, 9))
def test_a_long_line_keeps_its_extremes_its_last_value_and_its_count(values: list[float], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "BUCKETS", most)
        curve = sampled(enumerate(values))
    assert curve.seen == len(values) and len(curve.at) <= most and sum(curve.nans) == sum(map(math.isnan, values))
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) == len(values) and values:
        assert min(curve.low) == min(values) and max(curve.high) == max(values)  # type: ignore[type-var]
        assert curve.last[-1] == values[-1] and curve.at[-1] == len(values) - 1
