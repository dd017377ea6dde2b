"""Every kind of run is opened by the same steps in one order; what is wrong is found before anything is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from histories import history

from esper.leyline import TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.console import ConsoleSink
from esper.nissa.reader import read_journal
from esper.nissa.vitals import VitalsRecorder
from esper.run import session as session_module
from esper.run.config import RunConfig
from esper.run.open import PreparedRun, RunOpening, RunRequest, open_run, prepare
from esper.tolaria.nested import State, plain_state


class Counting:
    """A job of three steps."""

    def __init__(self) -> None:
        self.on_boundary: Any = None
        self.done = 0

    def state(self) -> State:
        return plain_state({"done": self.done})

    def load(self, state: Mapping[str, Any]) -> None:
        self.done = state["plain"]["done"]

    def least(self) -> dict[str, int]:
        return {"episodes": 1}

    def remarks(self) -> list[str]:
        return ["it only counts"]

    def run(self) -> None:
        while self.done < 3:
            self.done += 1
            self.on_boundary(self.done)


def ready(where: Path, **flags: Any) -> PreparedRun[RunConfig]:
    given = {"task": "tiny:tiny", "device": "cpu", "run_dir": str(where), "checkpoint_every": 2, **flags}
    return prepare(RunRequest("heuristic", RunConfig, given))


def test_a_job_is_announced_and_kept(tmp_path: Path) -> None:
    found, job = ready(tmp_path / "run"), Counting()
    what = found.announcement("counting", 1, 2)
    with open_run(found.opening(what, ConsoleSink(quiet=True)), job) as session:
        job.run()
    events = [event for event in read_journal(session.path, validate=True) if event.producer in ("train", "run")]
    assert [event.event_type for event in events][1:] == [T.TRAINING_STARTED, T.CHECKPOINT_SAVED, T.TRAINING_ENDED]
    assert events[1].data["envs"] == 2 and events[2].data["step"] == 2


def test_vitals_stand_between_what_the_run_says_and_change_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(name: str, at_least: int) -> list[TelemetryEvent]:
        found = ready(tmp_path / name)
        with open_run(found.opening(found.announcement("none", 1, 1), ConsoleSink(quiet=True))) as session:
            for _ in range(3):
                while session.hub.vitals is not None and len(session.hub.vitals) < at_least:
                    time.sleep(0.001)
                session.say(T.EPISODE_STARTED, seed=1, policy="none", arm="grown", max_epochs=1, host_parameters=1)
        return list(read_journal(tmp_path / name, validate=True))

    without = told("without", 0)
    monkeypatch.setattr(session_module, "VitalsRecorder", partial(VitalsRecorder, every=0.001))
    sampled = told("sampled", 1)
    vitals = [event for event in sampled if event.producer == "vitals"]
    assert len(vitals) >= 3 and not [event for event in without if event.producer == "vitals"]
    assert history(tmp_path / "sampled") == history(tmp_path / "without")
    times = [event.timestamp for event in sampled]
    assert times == sorted(times)
    assert threading.active_count() == len([each for each in threading.enumerate() if each.name != "esper-vitals"])


@pytest.mark.parametrize("threads", [1, 2])
def test_more_threads_than_one_are_said_on_the_screen(threads: int, tmp_path: Path) -> None:
    told: list[str] = []
    before = torch.get_num_threads()
    try:
        found = ready(tmp_path / "run", threads=threads)
        with open_run(found.opening(found.announcement("none", 1, 1), ConsoleSink(quiet=True), told.extend)):
            pass
    finally:
        torch.set_num_threads(before)
    assert told == ([] if threads == 1 else ["2 threads: their sums differ in the last bits from those of 1"])


def test_a_run_without_a_job_keeps_nothing(tmp_path: Path) -> None:
    found = ready(tmp_path / "run")
    with open_run(RunOpening(found.session(), found.announcement("none", 1, 1), found.sink)) as session:
        pass
    assert not any(event.event_type is T.CHECKPOINT_SAVED for event in read_journal(session.path))


def test_chance_follows_from_the_seed_and_a_preset_is_the_tasks(tmp_path: Path) -> None:
    draws = []
    for seed in (1, 1, 2):
        ready(tmp_path, seed=seed)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1] != draws[2]
    preset = {"tiny:tiny": {"episodes": 7}, "digits": {"episodes": 9}}
    request = RunRequest("heuristic", RunConfig, {"device": "cpu"}, {"task": "tiny:tiny"}, presets=preset)
    assert prepare(request).config.episodes == 7


def test_nothing_is_written_for_a_request_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown slot"):
        ready(tmp_path / "run", slots=("nowhere",))
    assert list(tmp_path.iterdir()) == []
