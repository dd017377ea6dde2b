"""What a learning policy says of its rounds, its actions and its rewards."""

from __future__ import annotations

from typing import Any

import pytest

from esper.karn.aggregator import fold
from esper.karn.detail import build_detail
from esper.karn.drawer import drawer_text
from esper.karn.pulse import PULSE
from esper.karn.snapshot import build
from esper.leyline import TelemetryEventType as T
from karn.streams import START, Recorder, begin, begin_episode, epoch_done


def _said(*analytics: dict[str, Any], env: int | None = None) -> Recorder:
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    for data in analytics:
        rec.say(T.ANALYTICS_SNAPSHOT, **({} if env is None else {"env_id": env}), **data)
    return rec


def test_rounds_are_about_no_environment() -> None:
    first = {"kind": "action_distribution", "round": 1, "steps": 10, "ops": {"WAIT": 9, "PRUNE": 1}, "succeeded": {}}
    second = first | {"round": 2, "ops": {"WAIT": 4, "GERMINATE": 6}}
    masks = {
        "kind": "mask_hit_rates",
        "round": 2,
        "steps": 10,
        "consumed": {"op": 10, "slot": 6},
        "restricted": {"op": 1.0, "slot": 0.5},
        "forced": {"op": 0.0, "slot": 0.25},
    }
    shot = build(fold(_said(first, second, masks).events), START)
    assert shot.unplaced == 0
    assert {name: figure.value for name, figure in shot.learner.items()} == {
        "chose.GERMINATE": 0.6,
        "chose.WAIT": 0.4,
        "forced.op": 0.0,
        "forced.slot": 0.25,
        "restricted.op": 1.0,
        "restricted.slot": 0.5,
    }
    assert [one.figure.value for one in shot.pulse if one.name == "wait_share"] == [0.4]


def test_what_an_environment_says_of_itself_is_in_its_drawer() -> None:
    speed = {"kind": "throughput", "batch_idx": 1, "episodes_completed": 0, "step_time_ms": 20.0}
    paid = {"kind": "reward_summary", "mode": "objective", "episode_return": 3.5, "objective_gain": 3.0}
    rec = _said(speed | {"dataloader_wait_ms": 1.5, "fps": 50.0}, paid, env=0)
    facts = build_detail(fold(rec.events), 0, START).facts
    assert {name: facts[name].value for name in ("fps", "dataloader_wait_ms", "episode_return")} == {
        "fps": 50.0,
        "dataloader_wait_ms": 1.5,
        "episode_return": 3.5,
    }
    assert fold(_said(speed).events).unplaced == 1, "its own figures need an environment"


def test_masks_of_an_action_stand_beside_it() -> None:
    rec = _said()
    where = {"env_id": 0, "epoch": 4, "op": "GERMINATE", "slot": "stem"}
    rec.say(T.COMMAND_EXECUTED, **where)
    masked = {"op": True, "slot": True, "blueprint": False}
    rec.say(T.ANALYTICS_SNAPSHOT, kind="last_action", masked=masked, success=True, illegal=False, **where)
    detail = build_detail(fold(rec.events), 0, START)
    assert detail.actions[0].masked == ["op", "slot"]
    assert "GERMINATE stem executed, masks narrowed op, slot" in drawer_text(detail)


def test_the_most_decided_head_is_judged_against_what_it_could_be() -> None:
    rec = _said()
    heads = {"op": {"entropy": 1.2, "most": 1.5, "share": 1.0}, "slot": {"entropy": 0.01, "most": 1.0, "share": 0.3}}
    rec.say(T.PPO_UPDATE_COMPLETED, round=1, lr=0.001, entropy=1.21, heads=heads)
    pulse = {one.name: one for one in build(fold(rec.events), START).pulse}
    assert (pulse["least_entropy"].figure.value, pulse["least_entropy"].level) == (0.01, "bad")
    assert pulse["lr"].level == "ok" and not hasattr(pulse["lr"].threshold, "real")


@pytest.mark.parametrize("name", PULSE)
def test_every_figure_of_the_pulse_gets_worse_in_its_direction(name: str) -> None:
    rule = PULSE[name]
    assert rule.level(float("nan")) == "critical"
    if rule.threshold is None or rule.bad is None:
        assert rule.level(1e9) == rule.level(-1e9) == "ok"
        return
    assert (rule.bad < rule.threshold) is rule.low_is_bad
    step = -1e-6 if rule.low_is_bad else 1e-6
    assert [rule.level(at) for at in (rule.threshold, rule.threshold + step, rule.bad + step)] == ["ok", "watch", "bad"]


def _rewarded(*objectives: float) -> set[str]:
    rec = _said()
    for epoch, objective in enumerate(objectives, 1):
        done = {"kind": "last_action", "op": "WAIT", "masked": {}, "success": True, "illegal": False, "reward": 0.0}
        rec.say(T.ANALYTICS_SNAPSHOT, env_id=0, episode=0, epoch=epoch, objective=objective, **done)
        epoch_done(rec, 0, epoch, 50.0 + epoch)
    return set(fold(rec.events).environments[0].anomaly.evidence)


def test_a_reward_that_falls_back_is_an_anomaly_though_the_metric_rises() -> None:
    assert _rewarded(10, 20, 30, 40, 50, 40, 30, 20) == {"reward_falling"}
    assert _rewarded(10, 20, 30, 40, 50, 45) == set(), "a tenth of it may go"
    assert _rewarded(10, 16, 10, 16, 10) == set(), "noise is no fall"


def test_a_learners_progress_is_in_rounds() -> None:
    rec = _said()
    rec.events[0].data |= {"kind": "ppo", "episodes": 8}
    assert not hasattr(build(fold(rec.events), START).run.progress.share, "real")
    rec.say(T.PPO_UPDATE_COMPLETED, round=2)
    for epoch in range(1, 30):
        epoch_done(rec, 0, epoch, 50.0)
    assert build(fold(rec.events), START).run.progress.share == 0.25


def test_slots_stand_in_the_order_of_the_network() -> None:
    rec = _said()
    for slot in ("neck", "stem"):
        rec.say(
            T.SEED_STAGE_CHANGED, env_id=0, epoch=1, slot_id=slot, seed_id=slot, **{"from": "DORMANT"}, to="TRAINING"
        )
    state = fold(rec.events)
    assert list(build(state, START).environments["0"].slots) == ["stem", "neck"]
    assert list(build_detail(state, 0, START).slots) == ["stem", "neck"]
