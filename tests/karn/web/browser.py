"""A headless Chromium for the tests, driven through a Node process that speaks JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
WEB = ROOT / "web"
ARTIFACTS = ROOT / "artifacts" / "overwatch"


def missing() -> str | None:
    """What this machine lacks for tests in a browser; ``None`` when nothing is missing."""
    if chromium() is None:
        return "no Chromium here (apt-get install chromium)"
    if shutil.which("node") is None:
        return "no Node here"
    if not (WEB / "node_modules" / "playwright-core").is_dir():
        return "the page's packages are not installed (npm ci in web/)"
    return None


def in_a_browser() -> list[pytest.MarkDecorator]:
    """Marks of a module whose tests need the page: skipped where something is missing, but not in CI."""
    lacking = missing()
    skip = pytest.mark.skipif(lacking is not None and os.environ.get("CI") != "true", reason=str(lacking))
    return [pytest.mark.browser, skip]


def chromium() -> str | None:
    """Path of the browser."""
    return os.environ.get("ESPER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page at a time. Every method of the driver is a method here; arguments go by name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return lambda **given: self.ask(name, given)

    def ask(self, name: str, given: dict[str, Any]) -> Any:
        """Send one request and wait for its answer. Raises ``AssertionError`` with what the browser said."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": name, **given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the browser is gone (exit {self._process.poll()})"
        answer = json.loads(line)
        assert "error" not in answer, f"{name} {given}: {answer['error']}"
        return answer.get("ok")


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser that ends with the block."""
    process = subprocess.Popen(
        ["node", str(WEB / "tests" / "driver.mjs"), str(chromium())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Browser(process)
    finally:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def go(browser: Browser, link: str, place: str = "#/flight", **size: Any) -> None:
    """Open the page at a place and wait for its first frame."""
    browser.open(url=link, **size)
    browser.wait(selector=".state")
    turn(browser, place)


def turn(browser: Browser, place: str) -> None:
    """Follow a link within the page."""
    browser.eval(code=f"location.hash = {place!r}")


def until(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    """What ``condition`` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.05)
    return found


def rows(browser: Browser) -> list[str]:
    """The board's lines in sight, as they are read out."""
    return list(browser.texts(selector="[role=option]"))
