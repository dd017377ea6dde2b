"""Run the slow tests and keep their table in ``docs/slow-tests.md``: test, outcome, seconds, day.

Arguments go to pytest. Tests that were not chosen keep the row that they had; tests that are gone lose it.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "slow-tests.md"


def outcome(case: ElementTree.Element) -> str:
    """``passed``, ``failed`` or ``skipped (reason)``."""
    for child in case:
        if child.tag == "skipped":
            return f"skipped ({child.get('message', '')})"
        if child.tag in ("failure", "error"):
            return "**failed**"
    return "passed"


def row(case: ElementTree.Element, day: datetime.date) -> tuple[str, str, str, str, str]:
    """One line of the table."""
    name = (case.get("name") or "").replace("|", "\\|")
    return case.get("classname") or "", name, outcome(case), f"{float(case.get('time', 0)):.1f}", str(day)


def kept(present: set[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The rows that stand in the page of tests that there still are."""
    if not TABLE.exists():
        return []
    lines = (line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| tests."))
    rows = [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]
    return [each for each in rows if len(each) == 5 and each[:2] in present]


def collected() -> set[tuple[str, str]]:
    """Module and name of every slow test."""
    command = [sys.executable, "-m", "pytest", "-m", "slow", "-q", "--collect-only"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [line.partition("::") for line in said.splitlines() if "::" in line]
    return {
        (path.removesuffix(".py").replace("/", "."), name.replace("::", ".").replace("|", "\\|"))
        for path, _, name in found
    }


def table(rows: list[tuple[str, ...]]) -> str:
    """The page."""
    seconds = sum(float(each[3]) for each in rows)
    head = f"Written by `.ci/slow`, Python {platform.python_version()}: {len(rows)} tests, {seconds:.0f} s in all."
    lines = ["| " + " | ".join(each) + " |" for each in sorted(rows)]
    return "\n".join(
        ["# Slow tests", "", head, "", "| module | test | outcome | s | on |", "|---|---|---|---:|---|", *lines, ""]
    )


def main() -> int:
    """Run them; pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", "-q", f"--junit-xml={report}", *sys.argv[1:]]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        today = datetime.datetime.now(datetime.UTC).date()
        rows = {each[:2]: each for each in (row(case, today) for case in ElementTree.parse(report).iter("testcase"))}
    before = {each[:2]: each for each in kept(collected())}
    TABLE.write_text(table(list((before | rows).values())), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
