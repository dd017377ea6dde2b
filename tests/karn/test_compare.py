from __future__ import annotations

import math
from pathlib import Path

import pytest

from esper.karn.compare import Course, compare
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn.streams import Recorder, begin, begin_episode, epoch_done, story


def run_of(base: Path, name: str, *metrics: list[float], task: str = "digits") -> Path:
    """A run with one episode per list of metrics."""
    rec = Recorder()
    begin(rec, envs=len(metrics))
    rec.events[0].data["task"] = task
    for env, course in enumerate(metrics):
        begin_episode(rec, env)
        for epoch, metric in enumerate(course, 1):
            epoch_done(rec, env, epoch, metric)
    return written(base, name, rec.events)


def written(base: Path, name: str, events: list[TelemetryEvent]) -> Path:
    run = RunDirectory.create(base, name, {})
    with JournalWriter(run.path, name) as writer:
        for event in events:
            writer(event)
    return run.path


def test_runs_of_one_configuration_are_pooled(tmp_path: Path) -> None:
    paths = [run_of(tmp_path, "a", [10.0, 20.0], [14.0, 28.0]), run_of(tmp_path, "b", [12.0])]
    found = compare([*paths, run_of(tmp_path, "c", [50.0], task="text")])
    assert [(course.run, course.n) for course in found.runs] == [("a", [2, 2]), ("b", [1]), ("c", [1])]
    pooled = next(course for course in found.groups if "digits" in course.run)
    assert pooled.run == "digits, heuristic (2 runs)" and pooled.n == [3, 2]
    assert pooled.mean == [12.0, 24.0] and pooled.spread == pytest.approx([2.0, math.sqrt(32)])
    alone = next(course for course in found.groups if "text" in course.run)
    assert alone.spread == [None], "one episode has no spread"
    assert (found.metric, found.unit) == ("accuracy", "points")


def test_other_configurations_of_the_same_task_have_other_labels(tmp_path: Path) -> None:
    first, second = run_of(tmp_path, "a", [1.0]), run_of(tmp_path, "b", [1.0])
    rec = Recorder()
    begin(rec, max_epochs=99)
    epoch_done(rec, 0, 1, 1.0)
    labels = compare([first, second, written(tmp_path, "c", rec.events)]).labels
    assert len(set(labels.values())) == 2


def test_arms_are_kept_apart_and_nan_by_name(tmp_path: Path) -> None:
    events = story()
    for event in events:
        if event.event_type is T.EPOCH_COMPLETED and event.env_id == 1:
            event.data |= {"arm": "static", "validation_metric": math.nan}
    found = compare([written(tmp_path, "a", events)])
    arms: dict[str, Course] = {course.arm: course for course in found.groups}
    assert set(arms) == {"grown", "static"} and set(arms["static"].mean) == {"NaN"}


def test_what_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path) -> None:
    good = run_of(tmp_path, "good", [1.0])
    bad = run_of(tmp_path, "bad", [1.0, 2.0])
    segment = next(bad.glob("events-*.jsonl"))
    segment.write_bytes(b"x" + segment.read_bytes())
    empty = RunDirectory.create(tmp_path, "empty", {}).path
    found = compare([good, bad, empty])
    assert [course.run for course in found.runs] == ["good"] and set(found.left_out) == {"bad", "empty"}
