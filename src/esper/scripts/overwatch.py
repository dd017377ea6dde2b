"""``esper overwatch [RUN_OR_FOLDER]``: watch a run, live or in replay, in the browser or in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from esper.karn.runs import resolve_run
from esper.leyline import DataError, UsageError
from esper.nissa.rundir import list_runs
from esper.scripts.alerts import NOTIFY, keep_watch, read_targets, start_watcher, target_of
from esper.scripts.cli import Parser, alive

LINGER = 20.0
"""Seconds that an Overwatch started beside a run stays after the run's process is gone and nobody looks."""
COLLECT_AFTER = 50_000
"""New objects after which the server looks for cycles. By Python's own 700 that is twice in each view of a wide run,
and now and then through the whole folded state, for 50 to 90 ms, while a view waits."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper overwatch``."""
    parser = Parser(prog="esper overwatch", description=__doc__)
    parser.add_argument("run", nargs="?", default="runs", help="a run, its id, or a folder of runs (default: runs)")
    face = parser.add_mutually_exclusive_group()
    face.add_argument("--tui", action="store_true", help="in this terminal")
    face.add_argument("--once", action="store_true", help="print a report in plain text and leave")
    face.add_argument("--no-page", action="store_true", help="only send alerts, until interrupted or the run is over")
    parser.add_argument("--replay", action="store_true", help="begin at the first event instead of now")
    parser.add_argument(
        "--filter", default="", metavar="TERMS", help="what --once shows, as in env=3 severity>=warning"
    )
    parser.add_argument("--notify", action="append", default=[], metavar="WHERE", help=NOTIFY)
    web = parser.add_argument_group("in the browser")
    web.add_argument("--port", type=int, help="default: 8471, or any free one where that is taken")
    web.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="default: only this machine")
    web.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="host name that may be used")
    web.add_argument(
        "--base-path", default="", metavar="PATH", help="path below which a proxy serves the page, as /esper"
    )
    web.add_argument("--token-file", type=Path, metavar="FILE", help="keep the token there (default: beside the cache)")
    web.add_argument("--allow-edits", action="store_true", help="name, tag, describe, put away and delete runs there")
    web.add_argument("--new-token", action="store_true", help="links that were given out stop working")
    web.add_argument("--build", action="store_true", help="build the page anew, in a checkout")
    web.add_argument("--beside", type=int, metavar="PID", help=argparse.SUPPRESS)
    web.add_argument("--until", type=int, metavar="PID", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str]) -> int:
    """Open what was asked for; returns the exit status."""
    given = build_parser().parse_args(argv)
    if given.port is not None and not 0 <= given.port < 65536:
        raise UsageError(f"--port {given.port}: a port is a number from 0 to 65535")
    where = read_targets(given.notify)
    if given.no_page:
        return keep_watch(given, where)
    if where and (given.once or given.tui):
        raise UsageError("--notify goes with the page, or with --no-page for alerts alone")
    if given.once:
        return once(resolve(given.run), given.filter)
    if given.filter:
        raise UsageError("--filter goes with --once; the other faces have a field for it")
    if given.tui:
        from esper.karn.tui import run_tui

        run_tui(resolve(given.run), replay=given.replay, progress=ReadingProgress())
        return 0
    return browse(given, where)


def resolve(name: str) -> Path:
    """The run to show: the one that is meant, or the newest in a folder of runs."""
    path = Path(name)
    inside = list_runs(path) if path.is_dir() else []
    return inside[-1] if inside else resolve_run(name)


def once(run: Path, terms: str) -> int:
    """Print the report."""
    from esper.karn.filter import parse
    from esper.karn.plain import render
    from esper.karn.watch import RunWatch

    wanted = parse(terms)
    print(render(RunWatch(run, progress=ReadingProgress()).tick(), wanted))
    return 0


def browse(given: argparse.Namespace, notify: Sequence[str]) -> int:
    """Serve the page until interrupted, or beside a run until it is gone and nobody looks."""
    from esper.karn.replay import cache_home
    from esper.karn.web.guard import kept_token, token_from
    from esper.karn.web.server import Door, listen, make_server

    ready_page(given.build)
    target = target_of(given)
    if target is None:
        return 0
    if given.token_file is not None:
        token = token_from(given.token_file, given.new_token)
    else:
        token = kept_token(cache_home().with_name("overwatch-token"), given.new_token)
    door = Door(given.bind, given.port, given.allowed_host, token, given.base_path, given.allow_edits)
    listening = listen(door)
    server = make_server(target, listening, progress=ReadingProgress())
    gc.set_threshold(COLLECT_AFTER)
    link = listening.link
    if given.replay:
        link += "&at=0"
    print(f"Overwatch: {link}", flush=True)
    if "SSH_CONNECTION" in os.environ:
        there = f"{listening.port}:127.0.0.1:{listening.port}"
        print(f"  from your machine: ssh -L {there} HOST, then this link; any port there will do", flush=True)

    def leave_when_alone() -> None:
        last = time.monotonic()
        while time.monotonic() - last < LINGER:
            if alive(given.beside) or server.server_state.connections:
                last = time.monotonic()
            time.sleep(1.0)
        server.should_exit = True

    if given.beside is not None:
        threading.Thread(target=leave_when_alone, daemon=True).start()
    watcher = start_watcher(target, notify, "--until", os.getpid()) if notify else None
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening.socket])
    finally:
        if watcher is not None:
            watcher.terminate()
            watcher.wait()
    return 0


class ReadingProgress:
    """Says on stderr, once a second, how far the reading of a long journal is; a short one passes in silence."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._done, self._next = 0, 0.0

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if done <= self._done or not self._done:
            self._next = now + 1.0
        elif now >= self._next:
            self._next = now + 1.0
            print(f"overwatch: reading the journal, {done / total:.0%}", file=sys.stderr, flush=True)
        self._done = done


def ready_page(anew: bool) -> None:
    """Build the page where it is missing or stale. One that is only stale is shown where it cannot be built."""
    from esper.karn.web import assets

    state = assets.state()
    if state == "ready" and not anew:
        return
    try:
        assets.build(lambda text: print(f"overwatch: {text}", file=sys.stderr, flush=True))
    except DataError as problem:
        if state != "stale" or anew:
            raise
        print(f"overwatch: showing a page built from older sources: {problem}", file=sys.stderr, flush=True)


def start_beside(where: str | Path) -> None:
    """Start Overwatch as a process of its own for the run that this process is about to write.

    ``where`` is its directory, or the folder that it will be made in. The other process prints the link, and leaves
    when this one is gone and nobody looks any more.
    """
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(where), "--beside", str(os.getpid())]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
