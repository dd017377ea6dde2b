"""Every view of Overwatch on real runs, as pictures to be looked at by eye.

    uv run python tests/karn/web/looks.py FOLDER [--only VIEW] [--run NAME]

Runs that are not in ``FOLDER/runs`` yet are made first, each as a person would: one that grows by rules, a learner with
six environments, one that fails (its loss is no number), one at chance, one of ``esper.grow``, and one that is killed.
Pictures of 1280 and 390 pixels, dark and light, go to ``FOLDER/pictures``, each as tall as what its view has to show.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from karn.web.browser import Browser, go, launched, turn  # noqa: E402

LIBRARY = """
import sys, torch, esper
from sklearn.datasets import load_digits
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
y = torch.tensor(digits.target)
sets = [torch.utils.data.TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 1000), (1000, 1400))]
train, val = (torch.utils.data.DataLoader(one, batch_size=64, shuffle=not at) for at, one in enumerate(sets))
model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
budget = esper.Budget(epochs=60)
loss = torch.nn.functional.cross_entropy
esper.grow(model, train=train, val=val, loss=loss, budget=budget, run_dir=sys.argv[1])
"""
TRAIN = ("-m", "esper.scripts.main", "train")
RUNS = {
    "grown-by-rules": (*TRAIN, "heuristic", "--task", "digits", "--max-epochs", "60", "--episodes", "2"),
    "learner": (*TRAIN, "ppo", "--task", "digits", "--envs", "6", "--rounds", "5", "--episode-length", "14"),
    "no-number": (*TRAIN, "heuristic", "--task", "digits", "--lr", "1e18", "--max-epochs", "30"),
    "at-chance": (*TRAIN, "heuristic", "--task", "digits", "--lr", "1e-9", "--max-epochs", "20"),
    "library": ("-c", LIBRARY),
    "killed": (*TRAIN, "heuristic", "--task", "digits", "--max-epochs", "200"),
}
"""Run -> what makes it; the last one is killed in its midst."""
VIEWS = ("verdict", "flight", "curves", "events", "governor", "runs", "compare", "leaders")
DRAWERS = {"environment": "flight?env=0", "overlaid": "curves?runs=grown-by-rules,library,killed"}
SHOTS = [(scheme, width) for scheme in ("dark", "light") for width in (1280, 390)]


def make(runs: Path, name: str) -> None:
    """The run ``name``, unless it is there."""
    if (runs / name).is_dir():
        return
    arguments = RUNS[name]
    where = [str(runs / name)] if name == "library" else ["--run-dir", str(runs / name), "--quiet"]
    process = subprocess.Popen([sys.executable, *arguments, *where], cwd=ROOT)
    if name == "killed":
        while process.poll() is None and not list(runs.glob(f"{name}/events-*.jsonl")):
            time.sleep(0.2)
        time.sleep(25)
        process.kill()
    process.wait()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A link to ``esper overwatch`` over the runs."""
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(folder / "runs"), "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split(" ", 1)[1].strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)


def shoot(browser: Browser, link: str, name: str, folder: Path, only: str | None) -> None:
    """Every view of one run."""
    places = {view: view for view in VIEWS} | DRAWERS
    for scheme, width in SHOTS:
        go(browser, link, f"#/verdict?run={name}", width=width, height=900, scheme=scheme)
        for view, place in places.items():
            if only not in (None, view):
                continue
            turn(browser, f"#/{place}{'&' if '?' in place else '?'}run={name}")
            time.sleep(1.6)
            tall = browser.eval(code=TALL)
            browser.size(width=width, height=min(max(900, tall), 4000))
            time.sleep(0.6)
            browser.shot(path=str(folder / f"{name}-{view}-{scheme}-{width}.png"))
            browser.size(width=width, height=900)
            if said := browser.said():
                print(name, view, scheme, width, said)


TALL = """(() => {
  const views = [...document.querySelectorAll("main .view, aside")];
  return innerHeight + Math.max(0, ...views.map((one) => one.scrollHeight - one.clientHeight));
})()"""


def main() -> None:
    """Make the runs, then the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="one view")
    parser.add_argument("--run", help="one run", choices=RUNS)
    parser.add_argument("--make", action="store_true", help="make the runs, and no picture")
    given = parser.parse_args()
    folder = given.folder.resolve()
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    names = [given.run] if given.run else list(RUNS)
    for name in names:
        make(folder / "runs", name)
    if given.make:
        return
    with served(folder) as link, launched() as browser:
        for name in names:
            shoot(browser, link, name, folder / "pictures", given.only)


if __name__ == "__main__":
    main()
