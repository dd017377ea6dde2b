"""How fast the page draws many curves: 50 runs of 1,000 epochs, drawn, panned and zoomed in a headless Chromium.

    uv run python benchmarks/overwatch_curves.py

*Read* is what the server takes to answer, first and again. *Drawn* is from the answer's last byte in the page to the
task after the frame with every chart in sight is painted. *Pan* moves the range once in each animation frame for five
seconds; *at rest* nothing is done in each, which is what the machine allows. The table is opened over 1,000 runs
(``--table``), timed from the click to its rows, with the server's resident memory after it.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from esper.karn.web import assets  # noqa: E402
from karn.journals import write_run  # noqa: E402
from karn.streams import Recorder, begin, begin_episode, epoch_done  # noqa: E402
from karn.web.browser import Browser, launched, missing  # noqa: E402

DRAW = """(async (runs) => {
  performance.clearResourceTimings();
  const answers = () => performance.getEntriesByType("resource").filter((one) => one.name.includes("api/curves"));
  const read = () => answers()[0]?.responseEnd;
  const began = performance.now();
  location.hash = `#/curves?runs=${runs}`;
  const inSight = () => [...document.querySelectorAll("figure .plot")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
  });
  await new Promise((resolve) => {
    const look = () => {
      const plots = inSight();
      if (read() && plots.length > 3 && plots.every((one) => one.querySelector("canvas"))) setTimeout(resolve);
      else requestAnimationFrame(look);
    };
    look();
  });
  return { answered: read() - began, drawn: performance.now() - read(), charts: inSight().length };
})"""
PAN = """(async (seconds) => {
  const over = document.querySelector("figure .u-over");
  const box = over.getBoundingClientRect();
  const place = { bubbles: true, cancelable: true, clientX: box.x + box.width / 2 };
  const wheel = (keys) => over.dispatchEvent(new WheelEvent("wheel", { ...place, ...keys }));
  for (let at = 0; at < 4; at += 1) {
    wheel({ ctrlKey: true, deltaY: -100 });
    await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
  }
  const times = [];
  const end = performance.now() + seconds * 1000;
  let [before, by] = [performance.now(), 6];
  while (before < end) {
    if (times.length % 60 === 59) by = -by;
    wheel({ shiftKey: true, deltaX: by });
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times;
})"""
IDLE = """(async (seconds) => {
  const times = [];
  const end = performance.now() + seconds * 1000;
  let before = performance.now();
  while (before < end) {
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - before);
    before = now;
  }
  return times;
})"""
TABLE = """(async () => {
  const began = performance.now();
  location.hash = "#/runs";
  await new Promise((resolve) => {
    const drawn = () => document.querySelectorAll(".view td.name").length >= 300;
    const look = () => (drawn() ? setTimeout(resolve) : requestAnimationFrame(look));
    look();
  });
  return performance.now() - began;
})()"""


def make(folder: Path, runs: int, epochs: int) -> list[str]:
    """Runs of one host each: accuracy that saturates, with a point of noise, two losses, a rate and times."""
    names, dice = [], random.Random(0)
    for number in range(runs):
        rec = Recorder()
        begin(rec, envs=1, max_epochs=epochs)
        begin_episode(rec, 0, max_epochs=epochs)
        for epoch in range(1, epochs + 1):
            done = 1 - math.exp(-epoch / (100 + 5 * number))
            loss = 2.3 - (1.5 + number / 100) * done + dice.gauss(0, 0.02)
            rate = 0.005 * (1 + math.cos(math.pi * epoch / epochs))
            more = {"train_loss": loss, "learning_rate": rate, "train_ms": 20 + number + dice.gauss(0, 1)}
            epoch_done(rec, 0, epoch, 10 + (60 + number / 2) * done + dice.gauss(0, 1), **more)
        names.append(f"run-{number:04d}")
        write_run(folder, rec.events, run_id=names[-1])
    return names


@contextmanager
def served(folder: Path, scratch: Path) -> Iterator[tuple[str, int]]:
    """Link and process of ``esper overwatch``."""
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(folder), "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(scratch / "cache")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split(" ", 1)[1].strip(), server.pid
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def resident(pid: int) -> float:
    """MiB."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def counted(browser: Browser, code: str) -> tuple[Any, float]:
    """What the code gives, and the milliseconds of CPU that the page's process took meanwhile."""
    before = browser.metrics()["ProcessTime"]
    found = browser.eval(code=code)
    return found, 1000 * (browser.metrics()["ProcessTime"] - before)


def curves(browser: Browser, names: list[str]) -> None:
    """Draw, draw again, pan."""
    listed = ",".join(names)
    for title in (f"{len(names)} runs, first", "again", "again"):
        found, cpu = counted(browser, f"{DRAW}('{listed}')")
        print(
            f"{title:<16} answered {found['answered']:6.0f} ms, {found['charts']} charts drawn {found['drawn']:5.0f} ms"
        )
        print(f"  CPU of the page, asking included {cpu:.0f} ms")
        times, cpu = counted(browser, f"{PAN}(5)")
        times.sort()
        middle, worst = times[len(times) // 2], times[int(0.95 * len(times))]
        print(f"  pan {len(times) / 5:.0f} frames a second, of a frame p50 {middle:.1f} ms, p95 {worst:.1f} ms")
        idle = sorted(browser.eval(code=f"{IDLE}(2)"))
        print(f"  at rest {len(idle) / 2:.0f} frames a second, p95 {idle[int(0.95 * len(idle))]:.1f} ms")
        print(f"  CPU of the page {cpu / len(times):.1f} ms a frame")
        browser.eval(code="location.hash = '#/events'")
        time.sleep(1)


def main() -> None:
    """Make the runs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--table", type=int, default=1000, help="runs of the table, 300 or more; 0: without it")
    given = parser.parse_args()
    if (lacking := missing()) is not None:
        sys.exit(f"overwatch_curves: {lacking}")
    assets.make_ready(print)
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as text:
        scratch = Path(text)
        names = make(scratch / "long", given.runs, given.epochs)
        with served(scratch / "long", scratch) as (link, _), launched() as browser:
            browser.open(url=link, width=1280, height=800)
            browser.wait(selector=".state")
            curves(browser, names)
        if not given.table:
            return
        make(scratch / "many", given.table, 3)
        with served(scratch / "many", scratch) as (link, pid), launched() as browser:
            browser.open(url=link.replace("#", "#/verdict?"), width=1280, height=800)
            browser.wait(selector=".state")
            print(f"table of {given.table} runs, first        {browser.eval(code=TABLE):7.0f} ms")
            browser.eval(code="location.hash = '#/verdict'")
            time.sleep(0.5)
            print(f"table again                      {browser.eval(code=TABLE):7.0f} ms")
            print(f"server's memory                  {resident(pid):7.0f} MiB")
            print(f"page's heap                      {browser.metrics()['heap'] / 1e6:7.0f} MB")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
