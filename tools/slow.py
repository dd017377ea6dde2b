"""Run the slow tests and keep their table in ``docs/slow-tests.md``: test, outcome, seconds."""

from __future__ import annotations

import datetime
import platform
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


def table(cases: list[ElementTree.Element]) -> str:
    """The page."""
    seconds = sum(float(case.get("time", 0)) for case in cases)
    rows = [
        f"| {case.get('classname')} | {case.get('name')} | {outcome(case)} | {float(case.get('time', 0)):.1f} |"
        for case in sorted(cases, key=lambda case: (case.get("classname") or "", case.get("name") or ""))
    ]
    today = datetime.datetime.now(datetime.UTC).date()
    head = f"Written by `.ci/slow` on {today}, Python {platform.python_version()}, {seconds:.0f} s in all."
    return "\n".join(["# Slow tests", "", head, "", "| module | test | outcome | s |", "|---|---|---|---:|", *rows, ""])


def main() -> int:
    """Run them; pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "slow", "-q", f"--junit-xml={report}", *sys.argv[1:]]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        cases = [case for case in ElementTree.parse(report).iter("testcase")]
    TABLE.write_text(table(cases), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
