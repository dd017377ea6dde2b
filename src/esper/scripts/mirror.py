"""``esper mirror RUN --to TRACKER``: the curves of a run, from its journal, in TensorBoard, W&B or MLflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from esper.karn.mirror import mirror
from esper.karn.runs import resolve_run
from esper.karn.trackers import TRACKERS
from esper.leyline import visible
from esper.nissa.rundir import RunDirectory
from esper.scripts.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper mirror``."""
    parser = Parser(prog="esper mirror", description=__doc__)
    parser.add_argument("run", help="a run directory or run id")
    parser.add_argument("--to", required=True, choices=TRACKERS, help="the tracker; each is an extra of its name")
    parser.add_argument(
        "--into",
        metavar="PLACE",
        help="folder of tensorboard (default: RUN/tensorboard), project of wandb (default: esper), "
        "tracking URI of mlflow (default: its own)",
    )
    parser.add_argument("--follow", action="store_true", help="go on until the run ends")
    return parser


def main(argv: Sequence[str]) -> int:
    """Copy the curves and say where they are."""
    given = build_parser().parse_args(argv)
    run = RunDirectory.open(resolve_run(given.run))
    settings = {name: setting.value for name, setting in run.manifest.config.items()}
    tracker = TRACKERS[given.to](run.path, run.run_id, settings, given.into)
    print(f"{given.to}: {tracker.place}", flush=True)
    points = mirror(run.path, tracker, follow=given.follow, note=_note)
    print(f"{points} points")
    return 0


def _note(text: str) -> None:
    print(f"esper: {visible(text)}", file=sys.stderr)
