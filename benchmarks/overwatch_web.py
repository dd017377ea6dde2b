"""How well the page keeps up: 1,000 environments of 10 slots, ten views a second, in a headless Chromium.

    uv run python benchmarks/overwatch_web.py --seconds 600

A writer process appends epochs of a tenth of the environments ten times a second; ``esper overwatch`` serves them from
a process of its own. *Lag* is from the moment that the server takes for its snapshot to the task after the frame is
painted, by the one clock of the machine, so that building, packing, sending, patching and drawing are all in it.
*Main thread* is Chromium's own ``TaskDuration`` over wall time. *Heap* is the page's after a forced collection.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from esper.karn.web import assets  # noqa: E402
from esper.nissa.journal import JournalWriter  # noqa: E402
from esper.nissa.rundir import RunDirectory  # noqa: E402
from karn.streams import Recorder, begin, begin_episode, epoch_done  # noqa: E402
from karn.web.browser import launched, missing  # noqa: E402

STAGES = ("DORMANT", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")
LISTEN = """
window.lags = [];
window.drawn = 0;
const fill = CanvasRenderingContext2D.prototype.fillRect;
CanvasRenderingContext2D.prototype.fillRect = function (...at) {
  window.drawn = performance.now();
  return fill.apply(this, at);
};
window.undrawn = 0;
addEventListener("overwatch:frame", (event) => {
  // told within an animation frame, whose painting is done when the next task begins
  const taken = event.detail.taken * 1000;
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    const now = performance.now();
    if (window.drawn < event.detail.received) window.undrawn += 1;
    window.lags.push([performance.timeOrigin + now - taken, now - event.detail.received]);
  };
  channel.port2.postMessage(0);
});
"""


def write(directory: Path, envs: int, slots: int, rate: float) -> None:
    """Append epochs until the process is ended."""
    names = tuple(f"slot{index}" for index in range(slots))
    rec = Recorder(time.time())
    begin(rec, envs=envs, max_epochs=1_000_000, slots=names)
    for env in range(envs):
        begin_episode(rec, env, max_epochs=1_000_000)
    run = RunDirectory.create(directory.parent, directory.name, {})
    with JournalWriter(run.path, directory.name) as writer:
        turn = 0
        while True:
            began = time.monotonic()
            for env in range(turn % 10, envs, 10) if turn >= 10 else range(envs):
                stages = {name: STAGES[(env + turn // 10 + place) % 5] for place, name in enumerate(names)}
                alphas = {name: ((turn + place) % 10) / 10 for place, name in enumerate(names)}
                rec.now = time.time() - 0.5  # an epoch adds as much
                epoch_done(rec, env, turn // 10 + 1, 50 + (env * turn) % 40, stages=stages, alphas=alphas)
            for event in rec.events:
                writer(event)
            rec.events.clear()
            writer.flush()
            turn += 1
            time.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))


def measure(link: str, seconds: float) -> None:
    """Open the page, look at it for so long, print what was found."""
    with launched() as browser:
        browser.open(url=link, width=1280, height=800)
        browser.eval(code="location.hash = '#/flight'")
        browser.wait(selector="[role=option]", state="attached")
        time.sleep(5)
        browser.eval(code=LISTEN)
        lags: list[list[float]] = []
        heaps: list[float] = []
        before, began = browser.metrics(), time.monotonic()
        while (left := seconds - (time.monotonic() - began)) > 0:
            time.sleep(min(left, max(5.0, seconds / 20)))
            lags += browser.eval(code="window.lags.splice(0)")
            heaps.append(browser.metrics()["heap"] / 1e6)
        took, after = time.monotonic() - began, browser.metrics()
        undrawn = browser.eval(code="window.undrawn")
        busy = (after["TaskDuration"] - before["TaskDuration"]) / took
    print(f"frames {len(lags)} in {took:.0f} s ({len(lags) / took:.1f} a second), load {os.getloadavg()[0]:.1f}")
    print(f"frames painted without a new drawing of the board: {undrawn}")
    for name, times in zip(("server to paint, ms", "of it in the page, ms"), zip(*lags, strict=True), strict=True):
        ordered = sorted(times)
        at = [ordered[min(len(lags) - 1, int(len(lags) * share))] for share in (0.5, 0.95, 0.99)]
        print(f"{name:<24} p50 {at[0]:.1f}  p95 {at[1]:.1f}  p99 {at[2]:.1f}")
    print(f"main thread              {busy:.1%}")
    print(f"heap, MB                 first {heaps[0]:.1f}  last {heaps[-1]:.1f}  most {max(heaps):.1f}")


def main() -> None:
    """Start writer and server, measure, end both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--envs", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write is not None:
        write(given.write, given.envs, given.slots, given.rate)
    if (lacking := missing()) is not None:
        sys.exit(f"overwatch_web: {lacking}")
    assets.make_ready(print)
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as scratch:
        run = Path(scratch) / "wide"
        size = ["--envs", str(given.envs), "--slots", str(given.slots), "--rate", str(given.rate)]
        writer = subprocess.Popen([sys.executable, __file__, "--write", str(run), *size])
        while not list(run.glob("events-*.jsonl")):
            time.sleep(0.1)
        command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(run), "--port", "0"]
        environment = {**os.environ, "XDG_CACHE_HOME": scratch}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stdout is not None
            measure(server.stdout.readline().split(" ", 1)[1].strip(), given.seconds)
        finally:
            writer.kill()
            server.send_signal(signal.SIGINT)
            writer.wait()
            server.wait()


if __name__ == "__main__":
    main()
