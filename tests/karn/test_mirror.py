from __future__ import annotations

import math
from pathlib import Path

import pytest

from esper.karn.mirror import Point, Points, mirror
from esper.leyline import DataError, SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from karn.journals import RUN_ID, write_run
from karn.streams import Recorder, begin, begin_episode, epoch_done, story


class Sheet:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.closed: list[str | None] = []

    def write(self, points: list[Point]) -> None:
        self.points += points

    def close(self, status: str | None) -> None:
        self.closed.append(status)


def _of(events: list[TelemetryEvent]) -> list[Point]:
    points = Points()
    return [point for event in events for point in points.of(event)]


def test_steps_go_on_over_the_episodes_of_an_environment() -> None:
    rec = Recorder()
    begin(rec)
    for _ in range(2):
        begin_episode(rec, 3)
        for epoch in (1, 2):
            epoch_done(rec, 3, epoch, 50.0 + epoch)
    metrics = [(p.group, p.step, p.value) for p in _of(rec.events) if p.name == "validation_metric"]
    assert metrics == [("env3", 1, 51.0), ("env3", 2, 52.0), ("env3", 3, 51.0), ("env3", 4, 52.0)]


def test_what_was_not_measured_has_no_point_and_nan_has_one() -> None:
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    rec.say(T.EPOCH_COMPLETED, env_id=0, epoch=1, validation_loss=math.nan, parameters=5, live_seeds=0, alphas={})
    points = {point.name: point.value for point in _of(rec.events)}
    assert set(points) == {"validation_loss", "parameters", "live_seeds"} and math.isnan(points["validation_loss"])


def test_values_by_slot_and_of_the_policy_have_names_of_their_own() -> None:
    rec = Recorder()
    begin_episode(rec, 0)
    epoch_done(rec, 0, 1, 50.0, stages={"stem": SeedStage.BLENDING.name}, alphas={"stem": 0.5})
    rec.say(T.COUNTERFACTUAL_COMPUTED, env_id=0, epoch=1, slot_id="stem", removal_cost=2.0, unit="points", examples=9)
    rec.say(T.REWARD_COMPUTED, env_id=0, epoch=1, total=0.25, components={"rent": -0.5})
    rec.say(T.PPO_UPDATE_COMPLETED, round=7, kl=0.01, stopped_by_kl=True, heads={})
    found = {(point.group, point.name): (point.step, point.value) for point in _of(rec.events)}
    assert found["env0", "alpha/stem"] == (1, 0.5)
    assert found["env0", "removal_cost/stem"] == (1, 2.0)
    assert found["env0", "reward/total"] == (1, 0.25) and found["env0", "reward/rent"] == (1, -0.5)
    assert found["policy", "kl"] == (7, 0.01)
    assert ("policy", "stopped_by_kl") not in found and ("policy", "round") not in found


def test_a_whole_run_is_given_once_and_closed_with_its_status(tmp_path: Path) -> None:
    sheet, events = Sheet(), story()
    assert mirror(write_run(tmp_path, events), sheet, wait=pytest.fail) == len(sheet.points)
    assert repr(sheet.points) == repr(_of(events)) and sheet.closed == ["completed"]


def test_following_goes_on_until_the_run_ends(tmp_path: Path) -> None:
    events, sheet = story(), Sheet()
    with JournalWriter(tmp_path, RUN_ID) as writer:
        left = [events[:40], events[40:]]

        def wait(_: float) -> None:
            for event in left.pop(0):
                writer(event)
            writer.flush()

        mirror(tmp_path, sheet, follow=True, wait=wait)
    assert not left and repr(sheet.points) == repr(_of(events)) and sheet.closed == ["completed"]


def test_a_run_that_did_not_say_it_ended_is_closed_without_a_status(tmp_path: Path) -> None:
    sheet = Sheet()
    mirror(write_run(tmp_path, story()[:40]), sheet)
    assert sheet.closed == [None]


def test_damage_is_said_after_the_points_before_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, story())
    journal = run / "events-00001.jsonl"
    data = bytearray(journal.read_bytes())
    data[-2000] ^= 1
    journal.write_bytes(data)
    sheet = Sheet()
    with pytest.raises(DataError, match="damaged at byte"):
        mirror(run, sheet)
    assert sheet.closed == [None]
