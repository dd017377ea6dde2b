"""``esper growtable``: build the tabular worlds, check them, learn in them and in real runs, score policies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from esper.leyline import UsageError
from esper.scripts.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper growtable``."""
    parser = Parser(prog="esper growtable", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    one = commands.add_parser("build", help="play the worlds' sequences and write the table; goes on where it was left")
    one.add_argument("--worlds", metavar="NAMES", help="comma-separated (default: all)")
    one.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    one.add_argument("--seeds", type=int, metavar="N", help="hosts a world (default 6)")
    one.add_argument("--singles", type=int, metavar="N", help="single choices a world (default: all)")
    one.add_argument("--pairs", type=int, metavar="N", help="sampled pairs a world (default 400)")
    one.add_argument("--pair-seeds", type=int, metavar="N", help="hosts with pairs (4)")
    one.add_argument("--parts", type=Path, default=Path("growtable-parts"), metavar="DIR", help="what is done so far")
    one.add_argument("--pack-only", action="store_true", help="pack hosts that have played the plan, and play nothing")
    one.add_argument("--output", type=Path, metavar="FILE", help="default: the package's own table")
    two = commands.add_parser("check", help="play tabulated sequences on fresh hosts, and compare")
    two.add_argument("--count", type=int, default=50, metavar="N")
    three = commands.add_parser("train", help="learn a policy in the training worlds")
    three.add_argument("--updates", type=int, metavar="N")
    three.add_argument("--seed", type=int)
    three.add_argument("--output", type=Path, required=True, metavar="FILE", help="a policy.safetensors")
    five = commands.add_parser("tune", help="let a policy learn on in real runs of the training worlds")
    five.add_argument("--policy", type=Path, required=True, metavar="FILE", help="a policy.safetensors to go on from")
    five.add_argument("--updates", type=int, metavar="N")
    five.add_argument("--seed", type=int)
    five.add_argument("--output", type=Path, required=True, metavar="FILE")
    four = commands.add_parser(
        "score", help="regret of policies on held-out worlds, beside choices that look at no host, and what they read"
    )
    four.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME|FILE|ZIP|module:Callable",
        help="beside the shipped one; may be repeated. A .zip is one of stable-baselines3. A callable without "
        "arguments makes a policy; one of two maps observation and mask of esper/GrowTableFlat-v0 to an action",
    )
    four.add_argument("--mark", default="growtable", help="name of the marks of PAGE (default: growtable)")
    four.add_argument("--output", type=Path, metavar="FILE.csv", help="a row an arm and host, for a data frame")
    four.add_argument("--submit", type=Path, metavar="FOLDER", help="write a submission for each policy that is named")
    eight = commands.add_parser("leaderboard", help="one table of submissions to one table's held-out worlds")
    eight.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what score --submit wrote")
    seven = commands.add_parser(
        "admit", help="play candidates for worlds, and admit those in which reading a host pays beyond doubt"
    )
    seven.add_argument("--worlds", metavar="NAMES", help="comma-separated families, or module:WORLD (default: all)")
    seven.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    seven.add_argument("--seeds", type=int, default=4, metavar="N", help="hosts a world (default 4)")
    seven.add_argument("--parts", type=Path, default=Path("growtable-parts"), metavar="DIR", help="what is done so far")
    seven.add_argument(
        "--fresh",
        type=int,
        default=0,
        metavar="N",
        help="more hosts of each admitted held-out world, which the written table holds instead of those that "
        "admitted it (default 0: it holds those)",
    )
    seven.add_argument("--judge-only", action="store_true", help="judge what has been played, and play nothing")
    seven.add_argument("--output", type=Path, metavar="FILE", help="write a table of the admitted worlds")
    seven.add_argument("--judged", type=Path, metavar="FILE", help="write a table of all that was judged")
    seven.add_argument("--table", type=Path, metavar="FILE", help="judge what a table holds, and play nothing")
    six = commands.add_parser("ship", help="put a policy into the package, its scores on its card")
    six.add_argument("--policy", type=Path, required=True, metavar="FILE")
    six.add_argument("--name", choices=("esper-v1", "esper-v2"), default="esper-v1", help="default: esper-v1")
    six.add_argument("--remark", action="append", default=[], metavar="TEXT", help="a sentence for its card, too")
    for command in (four, six):
        command.add_argument("--table-only", action="store_true", help="no real runs: minutes less")
    for command in (two, four, six, eight):
        command.add_argument("--table", type=Path, metavar="FILE", help="default: the package's own table")
    three.add_argument(
        "--table",
        type=Path,
        action="append",
        metavar="FILE",
        help="may be repeated, to learn in the worlds of all; default: the package's own table",
    )
    for command in (two, four, seven, eight):
        command.add_argument("--into", type=Path, metavar="PAGE", help="write the result between PAGE's marks, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    _refuse_unwritable(args)
    # torch is imported here, so that asking for help costs none
    from esper.scripts.growtable_runs import run

    run(args)
    return 0


def _refuse_unwritable(args: argparse.Namespace) -> None:
    """Say at once that a result would have no place, not after the work."""
    page, output = (getattr(args, name, None) for name in ("into", "output"))
    if page is not None and not page.is_file():
        raise UsageError(f"--into {page}: no such page")
    for name in ("output", "judged"):
        if (place := getattr(args, name, None)) is not None and place.is_dir():
            raise UsageError(f"--{name} {place}: a directory; a file is needed")
    if args.command == "admit" and (args.fresh < 0 or args.fresh and output is None):
        raise UsageError(f"--fresh {args.fresh}: legal: 0 or more hosts, for a table that is written (--output FILE)")
    if args.command == "admit" and args.table is not None and (args.worlds or output or args.judged):
        raise UsageError(f"--table {args.table}: all that it holds is judged; legal with it: --into")
    if args.command == "score" and output is not None and output.suffix != ".csv":
        raise UsageError(f"--output {output}: a table of scores ends in .csv")
    if args.command == "score" and args.submit is not None and (args.submit.is_file() or not args.policy):
        why = "a file; a folder is needed" if args.policy else "no --policy is named that could be submitted"
        raise UsageError(f"--submit {args.submit}: {why}")
