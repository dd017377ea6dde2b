"""A headless Chromium for the tests, driven through a Node process that speaks JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
