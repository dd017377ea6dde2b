from __future__ import annotations

from pathlib import Path

import pytest

from esper.karn import runs
from esper.karn.runs import describe_run, find_runs, resolve_run
from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from karn.journals import write_run
from karn.streams import Recorder, begin, epoch_done, random_run, story


def test_states(tmp_path: Path) -> None:
    ended, open_ = story(), story()[:-1]
    write_run(tmp_path, ended, run_id="a")
    write_run(tmp_path, open_, run_id="b")
    write_run(tmp_path, [], run_id="c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    now = (open_[-1].timestamp or 0) + 41
    states = {run.run_id: run.state(now) for run in find_runs(tmp_path)}
    assert states["a"] == "completed"
    assert states["b"] == "no end event, last heard 41 s ago"
    assert states["c"] == "no event yet"
    assert states["d"].startswith("unreadable: ")


def test_an_end_event_that_was_not_committed_does_not_count(tmp_path: Path) -> None:
    path = write_run(tmp_path, story(), batch=1)
    journal = path / "events-00001.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[: data.rindex(b'{"commit"')])
    assert describe_run(path).end_status in (None, "completed")
    cut = data[: data.rindex(b'"TRAINING_ENDED"')]
    journal.write_bytes(cut[: cut.rindex(b"\n") + 1] + b'{"event_type":"TRAINING_ENDED","data":{"status":"completed"')
    assert describe_run(path).end_status is None


def test_an_end_is_found_beneath_what_was_said_later(tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec, envs=1)
    rec.say(T.TRAINING_ENDED, status="interrupted", seconds=1.0)
    for epoch in range(1, 200):
        epoch_done(rec, 0, epoch, 50.0)
    path = write_run(tmp_path, rec.events, run_id="late", batch=7)
    assert (path / "events-00001.jsonl").stat().st_size > 2 * runs._TAILS[0]
    found = describe_run(path)
    assert (found.end_status, found.last_time) == ("interrupted", rec.events[-1].timestamp)
    begin(rec, envs=1)
    found = describe_run(write_run(tmp_path, rec.events, run_id="again", batch=7))
    assert (found.end_status, found.last_time) == (None, rec.events[-1].timestamp), "it began once more"


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "nowhere") == []


def test_one_run_is_a_list_of_one(tmp_path: Path) -> None:
    path = write_run(tmp_path, story(), run_id="a")
    assert [run.run_id for run in find_runs(path)] == ["a"]


def test_resolving_a_name(tmp_path: Path) -> None:
    first = write_run(tmp_path, story(), run_id="20260101-a")
    assert resolve_run(first) == first == resolve_run(tmp_path) == resolve_run("2026", tmp_path)
    write_run(tmp_path, random_run(1), run_id="20260101-b")
    for name, base, message in (
        (tmp_path, "runs", "holds 2 runs; name one of them: 20260101-a, 20260101-b"),
        ("2026", tmp_path, "is ambiguous"),
        ("1999", tmp_path, "no run '1999'"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_run(name, base)
