"""``esper report RUN``: rewrite a run's report and figures from its journal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from esper.leyline import DataError
from esper.scripts.cli import Parser
from esper.scripts.summary import print_summary


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper report``."""
    parser = Parser(prog="esper report", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the table and write report.json, report.md and the figures below RUN/report."""
    run: Path = build_parser().parse_args(argv).run
    if not run.is_dir():
        raise DataError(f"{run}: no such run directory")
    print_summary(run, Console(highlight=False))
    return 0
