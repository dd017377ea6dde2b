"""One browser and one server over a finished run for all tests of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from esper.karn.web import assets
from karn import demo
from karn.journals import write_run
from karn.streams import story
from karn.web.browser import ARTIFACTS, ROOT, Browser, launched, missing


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if (lacking := missing()) is not None:
        pytest.fail(lacking)
    assets.make_ready(print)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with launched() as found:
        yield found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, whole and ended, beside a short older run, in ``esper overwatch`` as a person starts it."""
    base = tmp_path_factory.mktemp("finished")
    parts = list(demo.epochs(count=46, start=time.time() - 92))
    for name, events in (("20250101-short", story()), ("20260101-demo", [event for part in parts for event in part])):
        write_run(base / "runs", events, run_id=name)
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(base / "runs"), "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(base / "cache"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split(" ", 1)[1].strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)
        process.stdout.close()
