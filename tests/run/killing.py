"""Runs in forked children that are killed at random moments, and what must be true of what they leave.

The reader and the fold here are their own, so that a fault of Esper's reader cannot hide one of its writer.
"""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from histories import CLOCK_EVENTS, assert_same, without_clock

from esper.nissa.compressed import zstandard
from forking import fork

CLOCK = {kind.name for kind in CLOCK_EVENTS}
OVER = "there is nothing to resume"
NOTHING = ("no checkpoint", "No such file", "not a run directory", "no run ", "holds no journal", "damaged manifest")
"""What a resume says where the run was killed before there was anything to resume."""


@dataclass(frozen=True)
class Kind:
    """A kind of run: its command, the task first, without where it goes; and whether its workers are forked from a
    server."""

    command: Sequence[str]
    forked_workers: bool = False
    patience: float = 600.0


def start(arguments: Sequence[str], log: Path, kind: Kind) -> int:
    """``esper ARGUMENTS`` in a forked child; its process id."""
    child = fork()
    if child:
        return child
    status = 99
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        without_figures()
        small_segments()
        if kind.forked_workers:
            fork_workers()
        from esper.scripts.main import main

        status = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def without_figures() -> None:
    """Drawing takes longer than these runs."""
    from esper.scripts import summary

    summary.write_report = partial(summary.write_report, figures=False)


def fork_workers() -> None:
    """Workers come from the parent's server of forks, which has imported all they need."""
    from esper.simic import workers_process

    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    context = multiprocessing.get_context("forkserver")
    workers_process.multiprocessing.get_context = lambda method: context  # type: ignore[attr-defined]


def prepare_server() -> None:
    """Start that server, before the first child."""
    multiprocessing.set_forkserver_preload(["esper.simic.workers_process", "torch._dynamo", "tiny"])
    multiprocessing.forkserver.ensure_running()


def ended(child: int, seconds: float) -> int:
    """Exit status of a child that ends by itself in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, how = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(how)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"no end after {seconds:.0f} s")


def small_segments() -> None:
    """Segments that are soon full, and compressed whatever their size."""
    from esper.nissa import journal

    journal.JournalConfig = partial(journal.JournalConfig, segment_bytes=1 << 14, compress_bytes=1)  # type: ignore


def segments(run: Path) -> list[Path]:
    """In order, by the name that each had before it was compressed."""
    return sorted({path.with_name(path.name.removesuffix(".zst")) for path in run.glob("events-*.jsonl*")})


def content(path: Path) -> bytes:
    """Of a segment in either form."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return zstandard().decompress(path.with_name(f"{path.name}.zst").read_bytes())


def committed(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Committed events of a segment, and where the last commit ends."""
    raw = content(path)
    events, pending, at, end = [], [], 0, 0
    for line in raw.split(b"\n")[:-1]:
        at += len(line) + 1
        told = json.loads(line)
        if "commit" in told:
            assert told["commit"]["count"] == len(pending), (path, at)
            events, pending, end = events + pending, [], at
        elif "journal" not in told:
            pending.append(told)
    return events, end


def told(event: dict[str, Any]) -> str:
    """What an event says, without clocks and places."""
    data = {name: value for name, value in without_clock(event["data"]).items() if name not in ("run_id", "path")}
    if event["event_type"] in ("CHECKPOINT_SAVED", "MODEL_EXPORTED"):
        data.pop("bytes", None)
    rest = {name: value for name, value in event.items() if name not in ("timestamp", "t_mono", "data", "severity")}
    return json.dumps({**rest, "data": data}, sort_keys=True)


@dataclass
class Killer:
    """Cases of one kind, each beside the uninterrupted ``whole``."""

    kind: Kind
    folder: Path
    events: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def whole(self) -> Path:
        """The uninterrupted run."""
        return self.folder / "whole"

    def play_whole(self) -> None:
        """Once, to compare with."""
        began = time.monotonic()
        child = start([*self.kind.command, "--run-dir", str(self.whole)], self.folder / "whole.log", self.kind)
        assert ended(child, 2 * self.kind.patience) == 0, (self.folder / "whole.log").read_text()
        self.seconds = time.monotonic() - began
        for path in segments(self.whole):
            for event in committed(path)[0]:
                if event["producer"] == "train":
                    self.events[event["seq"]] = told(event)

    def case(self, number: int, *, most: int = 4) -> dict[str, int]:
        """A run, killed and gone on with one to ``most`` times; what was counted. Asserts that nothing was lost,
        nothing invented, and nothing is different in the end."""
        draw = random.Random(f"{self.kind.command}{number}")
        run, log = self.folder / "other", self.folder / "case.log"
        shutil.rmtree(run, ignore_errors=True)
        log.unlink(missing_ok=True)
        fresh = [*self.kind.command, "--run-dir", str(run)]
        arguments, cuts = fresh, draw.randint(1, most)
        found = {"kills": 0, "in a save": 0, "in a resume": 0, "torn tails": 0}
        before: dict[Path, bytes] = {}
        while True:
            status = self._run(arguments, run, log, draw if found["kills"] < cuts else None, found)
            if status is None:
                before = self._look(run, before, found)
                arguments = [*self.kind.command[:4], "--resume", str(run), "--quiet"]
                continue
            said = log.read_text()
            last = said.strip().rpartition("\n")[2]
            if status == 0 or OVER in last:
                break
            assert any(nothing in last for nothing in NOTHING), f"status {status}: {said[-2000:]}"
            assert not before or not list((run / "checkpoints").glob("ckpt-*")), f"a checkpoint is there: {last}"
            shutil.rmtree(run, ignore_errors=True)
            before, arguments = {}, fresh
        assert "Traceback" not in said, said[-3000:]
        self._look(run, before, found)
        assert_same(run, self.whole)
        left = [path for path in run.rglob(".*") if path.is_file()]
        assert not left or OVER in last, left
        return found

    def _run(
        self, arguments: Sequence[str], run: Path, log: Path, draw: random.Random | None, found: dict[str, int]
    ) -> int | None:
        """The exit status, or ``None`` when it was killed."""
        child, many = start(arguments, log, self.kind), len(segments(run))
        if draw is None:
            return ended(child, self.kind.patience)
        aim = draw.choice(["time", "time", "save", "save", "segment", "early"])
        limit = draw.uniform(0, self.seconds * (0.3 if aim == "early" else 1.0))
        nth, deadline = draw.randint(1, 4), time.monotonic() + self.kind.patience
        began, busy = time.monotonic(), False
        while True:
            done, how = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(how)
            if aim == "save":
                saving = _saving(run)
                nth -= saving and not busy
                busy = saving
                strike = nth == 0
            elif aim == "segment":
                strike = len(segments(run)) > many
            else:
                strike = False
            if strike or time.monotonic() - began > limit or time.monotonic() > deadline:
                break
            time.sleep(0.0002 if aim in ("save", "segment") else 0.002)
        if strike:
            time.sleep(draw.choice([0, 0, 0.0005, 0.002, 0.01]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["kills"] += 1
        found["in a save"] += aim == "save" and strike
        found["in a resume"] += "--resume" in arguments
        return None

    def _look(self, run: Path, before: dict[Path, bytes], found: dict[str, int]) -> dict[Path, bytes]:
        """What is committed now: all that was before, and nothing that the whole run does not say."""
        for path, start_of in before.items():
            assert content(path).startswith(start_of), f"lost: {path}"
        now = {}
        for path in segments(run):
            events, end = committed(path)
            raw = content(path)
            now[path] = raw[:end]
            found["torn tails"] += end < len(raw)
            for event in events:
                if event["producer"] == "train" and event["event_type"] not in CLOCK:
                    assert told(event) == self.events.get(event["seq"]), f"invented: {event}"
        return now


def _saving(run: Path) -> bool:
    try:
        return any(re.search(r"\.(saving|deleting)$", name) for name in os.listdir(run / "checkpoints"))
    except OSError:
        return False
