"""``esper runs [FOLDER]``: list runs with their state."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from esper.karn.runs import find_runs, table
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
    return parser


def main(argv: Sequence[str]) -> int:
    """Print one line per run, oldest first."""
    folder: Path = build_parser().parse_args(argv).folder
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    print(table(find_runs(folder), time.time()))
    return 0
