"""Run the slow tests, and the quick ones in other surroundings; keep their tables in ``docs/slow-tests.md``.

Counts that take hours go on from one sitting to the next; ``ESPER_COUNT_SECONDS`` limits one.

Arguments go to pytest, for the slow tests alone; ``elsewhere`` in the place of them runs the quick suite in other
surroundings alone, behind it a part of a surrounding's name, in that one. What was not run keeps the row that it had;
tests and surroundings that are gone lose it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "slow-tests.md"
COUNTS = ROOT / "build" / "counts"
"""Where counts that take more than one sitting stand; see ``tests/counting.py``."""
BACKGROUND = "SIGINT ignored"
ELSEWHERE: dict[str, dict[str, str]] = {
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "OMP_NUM_THREADS=2": {"OMP_NUM_THREADS": "2"},
    "ONEDNN_MAX_CPU_ISA=SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    BACKGROUND: {},
}
"""Kernels of other processors, another order of sums, and a job that a shell started in the background."""

Row = tuple[str, ...]


def outcome(case: ElementTree.Element) -> str:
    """``passed``, ``failed`` or ``skipped (reason)``."""
    for child in case:
        if child.tag == "skipped":
            return f"skipped ({child.get('message', '')})"
        if child.tag in ("failure", "error"):
            return "**failed**"
    return "passed"


def today() -> str:
    """The day, for a row."""
    return str(datetime.datetime.now(datetime.UTC).date())


def row(case: ElementTree.Element) -> Row:
    """One line of the table of slow tests."""
    name = (case.get("name") or "").replace("|", "\\|")
    return case.get("classname") or "", name, outcome(case), f"{float(case.get('time', 0)):.1f}", today()


def written(start: str, width: int) -> Iterator[Row]:
    """Rows of ``width`` cells that stand in the page, of the lines that begin with ``start``."""
    if not TABLE.exists():
        return
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if line.startswith(start) and len(cells) == width:
            yield cells


def collected() -> set[Row]:
    """Module and name of every slow test."""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-q", "--collect-only"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [line.partition("::") for line in said.splitlines() if "::" in line]
    return {
        (path.removesuffix(".py").replace("/", "."), name.replace("::", ".").replace("|", "\\|"))
        for path, _, name in found
    }


def tested(arguments: list[str], name: str | None = None) -> tuple[int, list[ElementTree.Element]]:
    """pytest's exit status and what became of each test, in the surroundings of that ``name``."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *arguments]
        environment = os.environ | (ELSEWHERE[name] | {"ESPER_HYPOTHESIS": "quick"} if name is not None else {})
        preparation = ignore if name == BACKGROUND else None
        status = subprocess.run(command, cwd=ROOT, check=False, env=environment, preexec_fn=preparation).returncode
        return status, list(ElementTree.parse(report).iter("testcase")) if report.exists() else []


def slow(arguments: list[str]) -> tuple[int, list[Row]]:
    """Run the slow tests; pytest's status and the rows of their table."""
    status, cases = tested(["-m", "slow", *arguments])
    present = collected()
    before = {each[:2]: each for each in written("| tests.", 5) if each[:2] in present}
    return status, list((before | {each[:2]: each for each in map(row, cases)}).values())


def elsewhere(wanted: str = "") -> tuple[int, list[Row]]:
    """Run the quick suite in the surroundings whose name has ``wanted`` in it; the worst status, the table's rows."""
    if not any(wanted in name for name in ELSEWHERE):
        raise SystemExit(f"{wanted!r} is in no name of {', '.join(ELSEWHERE)}")
    worst, rows = 0, {each[0].strip("`"): each for each in written("| `", 4)}
    for name in ELSEWHERE:
        if wanted in name:
            print(f"the quick suite with {name}", flush=True)
            begun = time.monotonic()
            status, cases = tested(["-m", "not slow", "-n", "2", "--dist", "loadfile"], name)
            worst = max(worst, status)
            counts = Counter(outcome(case).partition(" ")[0] for case in cases)
            told = ", ".join(f"{many} {what}" for what, many in sorted(counts.items()))
            fate = told if status == 0 else f"{told}, **exit status {status}**"
            rows[name] = (f"`{name}`", fate, f"{time.monotonic() - begun:.0f}", today())
    return worst, [rows[name] for name in ELSEWHERE if name in rows]


def counts() -> list[Row]:
    """What was counted, of the last sitting or as the page has it."""
    rows = {each[0]: each for each in written("| count: ", 5)}
    for path in sorted(COUNTS.glob("*.json")) if COUNTS.is_dir() else ():
        summary = json.loads(path.read_text(encoding="utf-8"))
        name = f"count: {summary['name']}"
        rows[name] = (name, summary["wanted"], summary["found"], f"{summary['seconds']}", summary["on"])
    return [rows[name] for name in sorted(rows)]


def lines(rows: list[Row]) -> list[str]:
    """Rows as Markdown."""
    return ["| " + " | ".join(each) + " |" for each in rows]


def page(rows: list[Row], others: list[Row]) -> str:
    """The page, of the rows of both tables."""
    seconds = sum(float(each[3]) for each in rows)
    head = f"Written by `.ci/slow`, Python {platform.python_version()}: {len(rows)} tests, {seconds:.0f} s in all."
    parts = ["# Slow tests", "", head, ""]
    parts += ["| module | test | outcome | s | on |", "|---|---|---|---:|---|", *lines(sorted(rows)), ""]
    if counted := counts():
        parts += [
            "## Counts",
            "",
            "What takes more than one sitting, gone on with by the next, on one state of `src`:",
            "",
        ]
        parts += ["| what | wanted | found | s | on |", "|---|---|---|---:|---|", *lines(counted), ""]
    if others:
        parts += ["## The quick suite elsewhere", "", "All tests that are not slow, each time with:", ""]
        parts += ["| with | outcome | s | on |", "|---|---|---:|---|", *lines(others), ""]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Run what is asked for; the worst exit status."""
    second = arguments[:1] == ["elsewhere"]
    first_status, rows = (0, list(written("| tests.", 5))) if second else slow(arguments)
    second_status, others = 0, list(written("| `", 4))
    if second or not arguments:
        TABLE.write_text(page(rows, others), encoding="utf-8")
        second_status, others = elsewhere(*arguments[1:2])
    TABLE.write_text(page(rows, others), encoding="utf-8")
    return max(first_status, second_status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
