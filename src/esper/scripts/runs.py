"""``esper runs [FOLDER]``: list runs with what they came to and the settings in which they differ."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from esper.karn.filter import parse
from esper.karn.runs import find_runs
from esper.karn.runtable import chosen, run_table, text
from esper.leyline import DataError
from esper.scripts.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper runs``."""
    parser = Parser(prog="esper runs", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs"),
        help="where run directories are, or one of them (default: runs)",
    )
    parser.add_argument(
        "--filter", default="", metavar="TERMS", help="as in task=digits state=failed lr>=0.01 level>=watch"
    )
    parser.add_argument("--sort", default="date", metavar="COLUMN", help="-COLUMN: the greatest first (default: date)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print one line per run, oldest first unless another order is asked for."""
    given = build_parser().parse_args(argv)
    folder: Path = given.folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    runs = run_table([run.path for run in find_runs(folder)], time.time())
    rows = chosen(runs, parse(given.filter, runs.keys), given.sort)
    sys.stdout.write(text(runs, rows))
    return 0
