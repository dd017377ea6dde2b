from __future__ import annotations

import pytest

from esper.karn import words
from esper.karn.aggregator import fold
from esper.karn.filter import parse
from esper.karn.plain import render
from esper.karn.snapshot import build
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import START, Recorder, begin


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (41.9, "41 s"),
        (185.0, "3 min 5 s"),
        (7800.0, "2 h 10 min"),
        (35_912_640.0, "415 d 15 h"),
        (1.2e8, "1,388 d 21 h"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


def test_moment_is_utc_and_never_raises() -> None:
    assert words.moment(1_795_952_410.87) == "2026-11-29 11:40:10Z"
    assert words.moment(1e300) == "1e+300" and words.moment(float("nan")) == "NaN"


@pytest.mark.parametrize(
    ("status", "severity"), [("completed", "info"), ("failed", "error"), ("interrupted", "warning")]
)
def test_an_end_that_is_no_success_is_an_alarm(status: str, severity: str) -> None:
    rec = Recorder()
    begin(rec)
    rec.say(T.TRAINING_ENDED, status=status, reason="the loss is not finite", seconds=1.0)
    shot = build(fold(rec.events), START + 10)
    assert shot.feed[-1].severity == severity
    assert [item.type for item in shot.alarms] == (["TRAINING_ENDED"] if severity != "info" else [])
    assert ("the loss is not finite" in render(shot, parse("severity>=warning"))) is True
    assert (f"[{severity}] run {status}" in render(shot, parse("severity>=warning"))) is (severity != "info")


def test_what_an_event_says_of_itself_is_never_lowered() -> None:
    event = TelemetryEvent(event_type=T.TRAINING_ENDED, severity="critical", data={"status": "failed"})
    assert words.severity(event) == "critical"


def test_why_a_run_failed_is_told_without_the_name_of_our_error_class() -> None:
    rec = Recorder()
    begin(rec, envs=1)
    rec.say(T.TRAINING_ENDED, status="failed", reason="EsperError: the loss is not finite.", seconds=1.0)
    view = build(fold(rec.events), START)
    for said in (view.run.text, view.alarms[-1].text, render(view)):
        assert "failed: the loss is not finite" in said and "EsperError" not in said
    assert words.end_reason("ValueError: no such axis") == "ValueError: no such axis"
    assert words.end_reason(None) == ""
