from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esper.karn.aggregator import fold
from esper.karn.judge import TELL
from esper.karn.lookout import AGAIN, Lookout, Memory
from esper.karn.notify import Alert
from esper.karn.snapshot import build
from esper.leyline import TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from esper.scripts import alerts, overwatch
from karn.journals import write_run
from karn.receiver import receiving
from karn.streams import START, Recorder, begin, begin_episode, epoch_done
from karn.test_verdict import ACCURACY, BETTER, run_of


def under_way(values: list[float], start: float = START, max_epochs: int = 30) -> Recorder:
    """A run under way whose metric takes these values."""
    rec = Recorder(start)
    begin(rec, envs=1, max_epochs=max_epochs)
    rec.events[0].data["metric"] = ACCURACY
    begin_episode(rec, 0, max_epochs=max_epochs)
    for epoch, value in enumerate(values, 1):
        epoch_done(rec, 0, epoch, value)
    return rec


def course(values: list[float]) -> list[TelemetryEvent]:
    return under_way(values).events


def tell(events: list[TelemetryEvent], ahead: float = 1.0) -> list[str]:
    state = fold(events)
    return build(state, (state.last_time or 0.0) + ahead).verdict.tell


def test_what_is_told_of() -> None:
    assert tell(run_of(BETTER)) == ["ended"]
    assert tell(run_of(BETTER, status="failed", reason="x")) == ["failed"]
    assert tell(run_of(BETTER, status="interrupted", reason="x")) == ["ended"]
    assert tell(run_of({"heuristic": [10.1, 9.9], "static": [10.0, 10.0]})) == ["at chance", "ended"]
    going = course([50.0] * 12)
    assert tell(going) == [] and tell(going, ahead=15.0) == [], "a little patience"
    assert tell(going, ahead=45.0) == ["silent"]
    assert tell(course([10.0] * 6)) == [], "the first third of an episode is no time to judge"
    assert tell(course([10.0] * 12)) == ["at chance"]
    assert set(TELL) == {"failed", "silent", "out of disk", "at chance", "ended"}


def disk(*free: int, memory: int = 10**8, every: float = 30.0, ends: bool = False) -> tuple[list[str], str]:
    """Kinds and headline of a run that measured these bytes left, one sample after the other."""
    rec = under_way([50.0] * 6)
    for left in free:
        vitals = {"kind": "host_vitals", "disk_free": left, "process_memory": memory}
        rec.say(T.ANALYTICS_SNAPSHOT, step=every, **vitals)
    if ends:
        rec.say(T.TRAINING_ENDED, status="completed", seconds=1.0)
    verdict = build(fold(rec.events), rec.now + 1).verdict
    return verdict.tell, verdict.headline


def test_a_disk_that_fills_is_told_in_every_face() -> None:
    assert disk(10**12, 10**12, 10**12)[0] == [] == disk(10**9, 2 * 10**9, 3 * 10**9)[0]
    assert disk(10**9, 10**8 + 1)[0] == [], "two samples within a minute are no rate"
    assert disk(4 * 10**9, 3 * 10**9, 2 * 10**9) == (
        ["out of disk"],
        "Out of disk in about 60 s: 2.00 GB left on the disk that the run writes to, and it fills at that rate",
    )
    assert disk(4 * 10**12, 4 * 10**12 - 10**9, 4 * 10**12 - 2 * 10**9)[0] == [], "not within days"
    kinds, headline = disk(10**6, memory=2 * 10**6)
    assert kinds == ["out of disk"] and "less than the 2.00 MB that it holds in memory" in headline
    assert disk(10**6, memory=2 * 10**6, ends=True)[0] == ["ended"]
    filled = disk(*(10**9 - 10**6 * at for at in range(200)), every=10.0)
    assert filled[0] == [], "13 hours of the last ten minutes' rate"


def test_a_memory_tells_each_thing_once_until_it_was_away_for_long() -> None:
    known, fresh = Memory(None), Memory(frozenset())
    assert known.news(["silent"], 0.0) == [] and fresh.news(["silent"], 0.0) == ["silent"]
    assert fresh.news(["silent"], 1.0) == [] == fresh.news([], 2.0) == fresh.news(["silent"], 3.0)
    assert fresh.news(["failed"], 4.0) == ["failed"]
    assert fresh.news([], 5.0) == [] and fresh.news(["failed"], 6.0) == ["failed"], "it went on and failed again"
    assert fresh.news([], AGAIN) == [] and fresh.news(["silent"], AGAIN + 1) == ["silent"]


class Folder:
    """A folder of runs that are written to while it is watched."""

    def __init__(self, path: Path) -> None:
        self.path, self.told, self.said = path, [], []
        self.began, self.ahead = time.time(), 0.0
        self.lookout = Lookout(path, self.take, self.said.append, wall=lambda: self.began + self.ahead)

    told: list[Alert]
    said: list[str]

    def take(self, alert: Alert) -> None:
        self.told.append(alert)

    def look(self) -> list[tuple[str, tuple[str, ...]]]:
        self.told.clear()
        self.lookout.look()
        return [(alert.run, alert.kinds) for alert in self.told]


def test_a_folder_is_watched_and_only_what_is_new_is_told(tmp_path: Path) -> None:
    write_run(tmp_path, run_of(BETTER), run_id="old")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    folder = Folder(tmp_path)
    rec = under_way([50.0] * 12, folder.began - 20)
    run = RunDirectory.create(tmp_path, "live", {"pid": os.getpid()})
    with JournalWriter(run.path, "live") as writer:
        for event in rec.events:
            writer(event)
        writer.flush()
        assert folder.look() == [] == folder.look()
        write_run(tmp_path, run_of(BETTER, status="failed", reason="boom"), run_id="new")
        assert folder.look() == [("new", ("failed",))] and folder.look() == []
        folder.ahead = 100.0
        assert folder.look() == [("live", ("silent",))] and folder.look() == []
        folder.ahead = 0.0
        writer(rec.say(T.TRAINING_ENDED, status="completed", seconds=1.0))
        writer.flush()
        assert folder.look() == [("live", ("ended",))] and folder.look() == []
    assert folder.told == [] and not folder.lookout.look()


def test_a_run_whose_process_was_killed_is_told_of_with_that(tmp_path: Path) -> None:
    """Beside the process: it need not be silent for long, since nothing can come any more."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    began = time.time()
    run = RunDirectory.create(tmp_path, "killed", {"pid": process.pid})
    with JournalWriter(run.path, "killed") as writer:
        for event in under_way([50.0] * 6, began - 30).events:
            writer(event)
    os.utime(run.path / "events-00001.jsonl", (began - 20, began - 20))
    told: list[Alert] = []
    lookout = Lookout(run.path, told.append, print, fresh=True, wall=lambda: began)
    assert lookout.look() and told == []
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lookout = Lookout(run.path, told.append, print, fresh=True, wall=lambda: began)
    assert not lookout.look()
    assert [alert.kinds for alert in told] == [("silent",)] and "and its process is gone" in told[0].text


def test_alerts_alone_end_with_their_run_and_no_list_of_processes_shows_where_they_go(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rec, run = under_way([50.0] * 6, time.time() - 20), RunDirectory.create(tmp_path, "one", {"pid": os.getpid()}).path
    with receiving("200") as server, JournalWriter(run, "one") as writer:
        for event in rec.events:
            writer(event)
        writer.flush()
        watcher = alerts.start_watcher(run, [server.url], "--until", os.getpid())
        try:
            end = time.monotonic() + 30
            while "go to http://127.0.0.1" not in (said := capfd.readouterr().err):
                assert time.monotonic() < end
                time.sleep(0.05)
            assert "SECRET" not in said
            assert "SECRET" not in Path(f"/proc/{watcher.pid}/cmdline").read_text()
            writer(rec.say(T.TRAINING_ENDED, status="failed", reason="boom", seconds=1.0))
            writer.flush()
            while not server.got:
                assert time.monotonic() < end and watcher.poll() is None
                time.sleep(0.05)
            assert watcher.wait(10) == 0
        finally:
            watcher.kill()
            watcher.wait()
        assert server.got[0]["body"]["kinds"] == ["failed"] and "boom" in server.got[0]["body"]["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-page"], "nothing to do without --notify"),
        (["--once", "--notify", "https://h/x"], "goes with the page"),
        (["--notify", "smtp://h/x"], "a webhook is http"),
        (["--notify", "no-such-command"], "neither a webhook"),
    ],
)
def test_mistakes_are_told_before_anything_is_watched(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        overwatch.main(arguments)


@pytest.mark.slow
def test_beside_a_run_of_a_user_the_end_is_told_and_the_secret_is_not_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "esper.scripts.main", "train", "heuristic", "--task", "toy:toy_task"]
    command += ["--episodes", "1", "--max-epochs", "40", "--quiet", "--run-dir", str(run), "--notify"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with receiving("500", "200") as server:
        subprocess.run([*command, server.url], env=environment, check=True, capture_output=True)
        end = time.monotonic() + 60
        while len(server.got) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert server.got[1]["body"]["kinds"][-1] == "ended" and "esper" in server.got[1]["body"]["command"]
    kept = json.loads((run / "run.json").read_text())["command"]
    assert kept[-1].startswith("http://127.0.0.1:") and kept[-1].endswith("/…")
