"""Alerts from a process that watches: of its own beside a run or a page, or as ``esper overwatch --no-page``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from esper.karn.runs import describe_run, resolve_run
from esper.leyline import DataError, UsageError, visible
from esper.nissa.rundir import list_runs
from esper.scripts.cli import alive

NOTIFY = (
    "send alerts (failed, silent, out of disk, at chance, ended) to a webhook (https://...; Slack reads it), or to a "
    "command, which gets the text on standard input; -: one such line each from standard input"
)
EVERY = 2.0
"""Seconds between looks."""
PATIENCE = 600.0
"""Seconds that alerts have to be delivered once the run is over."""
BEHIND = 5
"""Niceness of a process beside a run: the run goes first."""
MOST = 64 * 1024
"""Bytes of targets on standard input."""


def say(text: str) -> None:
    """One line in the terminal, where there is one."""
    with contextlib.suppress(OSError, ValueError):
        print(f"overwatch: {visible(text)}", file=sys.stderr, flush=True)


def read_targets(given: Sequence[str]) -> list[str]:
    """What was given to ``--notify``, checked; ``-`` stands for the lines of standard input. Raises ``UsageError``."""
    if not given:
        return []
    from esper.karn.notify import receivers

    read = sys.stdin.read(MOST).splitlines() if "-" in given else []
    targets = [one.strip() for one in (*(one for one in given if one != "-"), *read) if one.strip()]
    if not targets:
        raise UsageError("--notify -: nothing stood on standard input; one webhook or command a line is needed")
    receivers(targets)
    return targets


def start_watcher(where: str | Path, targets: Sequence[str], flag: str, pid: int) -> subprocess.Popen[str]:
    """A process that watches ``where`` and sends alerts to ``targets``, which no list of processes shows.

    ``flag`` is ``--beside`` for the run that process ``pid`` is about to write, or ``--until`` for as long as that is
    there.
    """
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(where), "--no-page", "--notify", "-"]
    process = subprocess.Popen(
        [*command, flag, str(pid)], stdin=subprocess.PIPE, text=True, start_new_session=True, encoding="utf-8"
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write("".join(f"{target}\n" for target in targets))
    return process


def keep_watch(given: argparse.Namespace, targets: Sequence[str]) -> int:
    """Watch and send alerts until interrupted, or until the run that it is about is over and they are delivered."""
    if not targets:
        raise UsageError("--no-page leaves nothing to do without --notify WHERE")
    from esper.karn.lookout import Lookout
    from esper.karn.notify import Outlet, receivers

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    target = target_of(given)
    if target is None:
        return 0
    one = not list_runs(target)
    found = receivers(targets)
    outlets = [Outlet(receiver, say) for receiver in found]

    def tell(alert: object) -> None:
        for outlet in outlets:
            outlet.put(alert)  # type: ignore[arg-type]

    lookout = Lookout(target, tell, say, fresh=given.beside is not None)
    patience, told = PATIENCE, False
    try:
        while not stop.is_set():
            goes_on = lookout.look()
            if not told:  # from here on what becomes of them is told
                told = True
                say(f"alerts on {target} go to {', '.join(receiver.name for receiver in found)}")
            if one and not goes_on:
                break
            if given.until is not None and not alive(given.until):
                patience = 0.0
                break
            stop.wait(EVERY)
    except KeyboardInterrupt:
        patience = 0.0
    if stop.is_set():
        patience = 0.0
    for outlet in outlets:
        outlet.close(patience)
    return 0


def target_of(given: argparse.Namespace) -> Path | None:
    """The run or folder to watch; ``None`` where the process that was to write the run left before there was one.

    Beside a run this process steps behind it. Raises ``UsageError`` where there is nothing to watch.
    """
    if given.beside is not None:
        os.nice(BEHIND)
        return await_run(Path(given.run), given.beside)
    return Path(given.run) if list_runs(given.run) else resolve_run(given.run)


def await_run(where: Path, pid: int, patience: float = 120.0) -> Path | None:
    """The run that process ``pid`` writes, in ``where`` or below it; ``None`` if it leaves before there is one."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for path in [where, *reversed(list_runs(where) if where.is_dir() else [])]:
            if (path / "run.json").is_file() and describe_run(path).pid == pid:
                return path
        if not alive(pid):
            return None
        time.sleep(0.2)
    raise DataError(f"no run of process {pid} in {where} after {patience:.0f} s")
