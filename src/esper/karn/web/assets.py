"""The page's built files: there in a wheel, built once with npm in a checkout.

``static/built-from.txt`` holds the digest of the sources that the files were built from, so that stale ones are known.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from esper.leyline import DataError

STATIC: Final = Path(__file__).parent / "static"
SOURCES: Final = Path(__file__).parents[4] / "web"
"""Only there in a checkout."""
STAMP: Final = "built-from.txt"
NODE: Final = 20
_PARTS: Final = (
    "src",
    "public",
    "index.html",
    "package.json",
    "package-lock.json",
    "vite.config.ts",
    "svelte.config.js",
)


def digest(sources: Path) -> str:
    """sha256 over the names and bytes of everything the page is built from."""
    found = hashlib.sha256()
    for part in _PARTS:
        top = sources / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                found.update(f"{path.relative_to(sources).as_posix()}\0{path.stat().st_size}\0".encode())
                found.update(path.read_bytes())
    return found.hexdigest()


def state(static: Path = STATIC, sources: Path = SOURCES) -> str:
    """``ready``, ``stale`` (built from other sources than those that are here) or ``missing``."""
    if not (static / "index.html").is_file():
        return "missing"
    if not (sources / "package.json").is_file():
        return "ready"
    try:
        built = (static / STAMP).read_text(encoding="utf-8").strip()
    except OSError:
        return "stale"
    return "ready" if built == digest(sources) else "stale"


def make_ready(say: Callable[[str], None], static: Path = STATIC, sources: Path = SOURCES) -> None:
    """Build the page unless it is ready; of several processes one builds and the others wait for it."""
    with contextlib.ExitStack() as stack:
        if (sources / "package.json").is_file():
            fcntl.flock(stack.enter_context((sources / "package.json").open()), fcntl.LOCK_EX)
        if state(static, sources) != "ready":
            build(say, static, sources)


def build(say: Callable[[str], None], static: Path = STATIC, sources: Path = SOURCES) -> None:
    """Install the page's packages as the lock has them, and build. Raises ``DataError`` with what is needed."""
    if not (sources / "package.json").is_file():
        raise DataError(
            "the page's sources are not here (they are in web/ of a checkout); install a wheel, or use --tui"
        )
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise DataError(f"building the page needs Node {NODE} or newer with npm; --tui and --once need neither")
    wanted = digest(sources)
    if not (sources / "node_modules" / ".bin" / "vite").exists():
        say("installing the page's packages (npm ci)")
        _run([npm, "ci", "--no-audit", "--no-fund"], sources)
    say("building the page (vite)")
    _run(
        [npm, "run", "--silent", "build", "--", "--outDir", str(static), "--emptyOutDir", "--logLevel", "warn"], sources
    )
    (static / STAMP).write_text(f"{wanted}\n", encoding="utf-8")


def _run(command: list[str], where: Path) -> None:
    done = subprocess.run(
        command,
        cwd=where,
        env={**os.environ, "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DataError(f"{' '.join(command[:3])} failed in {where} (exit {done.returncode}): {tail[0]}")
