"""An hour of difference between two clocks is no silence, and silence is no hour of difference."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from esper.karn.liveness import goes_on, heard
from esper.karn.runs import RunInfo
from esper.karn.watch import RunWatch
from esper.leyline import TelemetryEvent
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn.journals import write_run
from karn.streams import story

HOUR = 3600.0


@pytest.mark.parametrize(
    ("last", "grew", "now", "seconds"),
    [
        (1000.0, 1000.0, 1030.0, 30.0),  # clocks agree
        (1000.0, None, 1030.0, 30.0),
        (1000.0 + HOUR, 1000.0, 1030.0, 30.0),  # the trainer's is an hour ahead
        (1000.0 - HOUR, 1000.0, 1030.0, 30.0),  # behind, and the journal grew just now
        (1000.0, 1000.0 + HOUR, 1030.0 + 2 * HOUR, 2 * HOUR + 30),  # copied an hour later
        (1000.0 + HOUR, None, 1030.0, 0.0),
    ],
)
def test_since_when_nothing_was_heard(last: float, grew: float | None, now: float, seconds: float) -> None:
    assert heard(last, grew, now) == pytest.approx(seconds)


@pytest.mark.parametrize("skew", [-HOUR, 0.0, HOUR])
def test_a_run_whose_clock_is_off_is_seen_to_run_and_to_fall_silent(skew: float, tmp_path: Path) -> None:
    told = story()[:-1]
    path = RunDirectory.create(tmp_path, "run").path
    with JournalWriter(path, "run") as journal:
        hub = NissaHub()
        hub.add_sink(journal)
        clock = [time.time()]
        watch = RunWatch(path, clock=lambda: clock[0])
        shift = clock[0] + skew - (told[-1].timestamp or 0.0)
        for part in (told[:-4], told[-4:]):
            for event in part:
                hub.emit(_moved(event, shift))
            hub.flush()
            snapshot = watch.tick()
        assert snapshot.run.state == "running"
        clock[0] += 45.0
        silent = watch.tick()
        assert silent.run.state == "silent" and silent.clock.silent_for is not None
        assert 40 < silent.clock.silent_for < 50


def _moved(event: TelemetryEvent, shift: float) -> TelemetryEvent:
    return msgspec.structs.replace(event, timestamp=(event.timestamp or 0.0) + shift, seq=None)


def test_on_its_own_machine_a_run_is_judged_by_its_process(tmp_path: Path) -> None:
    mine = RunDirectory.create(tmp_path, "mine", {"pid": os.getpid()}).manifest
    assert goes_on(mine) is True
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    details = {**mine.details, "pid": child}
    assert goes_on(msgspec.structs.replace(mine, details=details)) is False
    old = msgspec.structs.replace(mine, created=mine.created - 400 * 86400)
    assert goes_on(old) is False, "that number belongs to another process now"
    elsewhere = msgspec.structs.replace(mine, host=msgspec.structs.replace(mine.host, digest="another"))
    assert goes_on(elsewhere) is None
    for odd in (None, True, -1, "7"):
        assert goes_on(msgspec.structs.replace(mine, details={"pid": odd, "resumes": 3})) is None


@pytest.mark.parametrize(
    ("process", "words"),
    [(True, "running, last"), (False, "no end event, and process 7 is gone, last"), (None, "no end event, last")],
)
def test_the_list_says_what_is_known(process: bool | None, words: str, tmp_path: Path) -> None:
    info = RunInfo(write_run(tmp_path, story()), "a", pid=7, last_time=100.0 + HOUR, grew=100.0, goes_on=process)
    assert info.state(now=112.0) == f"{words} heard 12 s ago"
