"""``esper query RUN "select ..."``: questions in SQL over what a run has committed."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from esper.karn.runs import resolve_run
from esper.karn.store import SqlStore
from esper.leyline import visible
from esper.scripts.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper query``."""
    parser = Parser(prog="esper query", description=__doc__)
    parser.add_argument("run", help="a run directory or run id")
    parser.add_argument("sql", help='for example: "select * from gates where not passed"')
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated values")
    form.add_argument("--json", action="store_true", help="JSON Lines: one object a row; what is unknown has no key")
    form.add_argument("--parquet", type=Path, metavar="FILE", help="write a Parquet file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the answer, or write it."""
    arguments = build_parser().parse_args(argv)
    with SqlStore([resolve_run(arguments.run)]) as store:
        for problem in store.damage:
            print(f"esper: {visible(problem.text)}", file=sys.stderr)
        if arguments.parquet is not None:
            rows = store.parquet(arguments.sql, arguments.parquet)
            print(f"{rows} rows in {arguments.parquet}")
            return 0
        result = store.query(arguments.sql)
    if arguments.csv:
        text = result.csv(exact=not sys.stdout.isatty())
    else:
        text = _escaped(result.json()) if arguments.json else result.text()
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    return 0


def _escaped(json_lines: str) -> str:
    """As it is where the terminal has Unicode; elsewhere in JSON's own escapes."""
    if (sys.stdout.encoding or "").lower().startswith("utf"):
        return json_lines
    return re.sub(r"[^\x00-\x7f]", lambda sign: json.dumps(sign[0])[1:-1], json_lines)
