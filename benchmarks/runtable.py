"""How long a folder of many runs takes to open: as text, from the server, and as a table on the page.

    uv run python benchmarks/runtable.py --runs 1000 --mib 150

The runs are copies of one, each with settings and a name of its own, a report, and now and then notes. ``first`` is the
first answer of a fresh process, ``again`` what a page asks every few seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from esper.karn.notes import Edit, edit  # noqa: E402
from esper.karn.report import write_report  # noqa: E402
from esper.karn.web.server import Door  # noqa: E402
from esper.nissa.journal import JournalWriter  # noqa: E402
from esper.nissa.manifest import Setting  # noqa: E402
from esper.nissa.rundir import RunDirectory  # noqa: E402
from karn.demo import epochs  # noqa: E402
from karn.web.browser import launched, until  # noqa: E402
from karn.web.serve import serving  # noqa: E402


def fill(folder: Path, runs: int, each: int) -> int:
    """Make the runs; returns the bytes that they take."""
    config = {"lr": Setting("flag", 0.01), "seed": Setting("flag", 7), "task": Setting("flag", "digits")}
    first = RunDirectory.create(folder, "run-0000", {"config": config})
    with JournalWriter(first.path, "run-0000") as writer:
        size = 0
        for part in epochs(count=46, start=1.78e9):
            for event in part:
                writer(event)
            writer.flush()
            size = sum(path.stat().st_size for path in first.path.glob("events-*"))
            if size >= each:
                break
    write_report(first.path, figures=False)
    told = json.loads((first.path / "run.json").read_text())
    for number in range(1, runs):
        path = folder / f"run-{number:04}"
        shutil.copytree(first.path, path)
        told |= {"run_id": path.name, "created": told["created"] + 60.0}
        told["config"]["lr"]["value"] = 10.0 ** -(1 + number % 5)
        told["config"]["seed"]["value"] = number
        (path / "run.json").write_text(json.dumps(told))
        if number % 10 == 0:
            edit(path, Edit(name=f"try {number}", tag=["tenth"], notes="what was learnt\n" * 20))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def asked(link: str) -> tuple[float, int]:
    """Seconds of one answer with the table, and its bytes."""
    page, _, token = link.partition("#token=")
    request = urllib.request.Request(f"{page}api/runs", headers={"Authorization": f"Bearer {token}"})
    began = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        size = len(answer.read())
    return time.perf_counter() - began, size


def measure(runs: int, mib: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "runs"
        size = fill(folder, runs, mib * 1024 * 1024 // runs)
        found: dict[str, Any] = {"runs": runs, "MiB": round(size / 2**20)}
        began = time.perf_counter()
        command = [sys.executable, "-m", "esper.scripts.main", "runs", str(folder)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        found |= {"esper runs, s": round(time.perf_counter() - began, 2), "lines": len(lines)}
        script = "import sys, time; from pathlib import Path; from esper.karn.runtable import run_table\n"
        script += "from esper.nissa.rundir import list_runs; t = time.perf_counter()\n"
        script += "run_table(list_runs(sys.argv[1]), 0.0); print(time.perf_counter() - t, time.process_time())"
        inside = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
        wall, cpu = map(float, inside.stdout.split())
        found |= {"table in a fresh process, s": round(wall, 2), "its CPU with imports, s": round(cpu, 2)}
        print(found, flush=True)
        with launched() as browser, serving(folder, Path(base) / "cache", door=Door(port=0)) as listening:
            browser.open(url="about:blank", fresh=True)
            began = time.perf_counter()
            browser.visit(url=listening.link.replace("#token", "#/runs?token"))
            until(lambda: len(browser.texts(selector="main td.name .link")) == min(runs, 300), 120)
            found["page, first to rows, s"] = round(time.perf_counter() - began, 2)
            again = [asked(listening.link) for _ in range(5)]
            found["server again, s"] = round(sorted(seconds for seconds, _ in again)[2], 2)
            found["answer, kB"] = round(again[0][1] / 1000)
            began = time.perf_counter()
            browser.fill(selector="main input[type=search]", text="tag=tenth lr>0.01")
            until(lambda: 0 < len(browser.texts(selector="main td.name .link")) < 300, 60)
            found["page, filtered, s"] = round(time.perf_counter() - began, 2)
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--mib", type=int, default=150)
    given = parser.parse_args()
    print(json.dumps(measure(given.runs, given.mib), indent=2))
