"""``esper runs [FOLDER]``: list runs with what they came to and the settings in which they differ; name, tag, describe,
put away or delete those that were chosen.

    esper runs runs/20261122-101500-abcd --name "first try" --tag good,baseline
    esper runs --filter 'state=failed' --archive
    esper runs --filter 'tag=scrap' --delete --yes
    esper runs prune --older 7d --yes        make room without losing a word of them (esper runs prune --help)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from esper.karn.filter import parse
from esper.karn.notes import LONGEST_NOTES, Edit, delete, edit, read_notes, told
from esper.karn.runs import find_runs, is_run
from esper.karn.runtable import RunRow, chosen, run_table, text
from esper.leyline import DataError, EsperError, UsageError, visible
from esper.scripts.cli import Parser
from esper.scripts.runs_prune import folder_of, prune


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper runs``."""
    parser = Parser(prog="esper runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", default="runs", help="where run directories are, one of them, or its id (default: runs)"
    )
    parser.add_argument(
        "--filter", default="", metavar="TERMS", help="as in task=digits state=failed lr>=0.01 level>=watch tag=good"
    )
    parser.add_argument("--sort", default="date", metavar="COLUMN", help="-COLUMN: the greatest first (default: date)")
    parser.add_argument("--archived", action="store_true", help="show runs that were put away, too")
    edits = parser.add_argument_group("what is said of the runs chosen, beside their journals")
    edits.add_argument("--name", metavar="NAME", help="call it so; '' takes the name away")
    edits.add_argument("--tag", action="append", default=[], metavar="TAGS", help="add tags, with commas between them")
    edits.add_argument("--untag", action="append", default=[], metavar="TAGS", help="take tags away")
    edits.add_argument("--note", metavar="TEXT", help="notes in place of those there; -: from standard input")
    away = edits.add_mutually_exclusive_group()
    away.add_argument("--archive", action="store_true", help="put away: hidden unless asked for")
    away.add_argument("--unarchive", action="store_true", help="bring back")
    away.add_argument("--delete", action="store_true", help="remove the runs with all that is in them; asks first")
    parser.add_argument("--yes", action="store_true", help="delete without being asked")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print one line per run, oldest first unless another order is asked for, or change those that were chosen."""
    if argv[:1] == ["prune"]:
        return prune(argv[1:])
    given = build_parser().parse_args(argv)
    folder = folder_of(given.folder)
    change = asked_for(given)
    if given.yes and not given.delete:
        raise UsageError("--yes goes with --delete")
    if change is not None or given.delete:
        return change_runs(folder, given, change)
    runs = run_table([run.path for run in find_runs(folder)], time.time())
    rows = chosen(runs, parse(given.filter, runs.keys), given.sort, given.archived or is_run(folder))
    sys.stdout.write(text(runs, rows))
    if is_run(folder):
        sys.stdout.write(notes_of(folder))
    return 0


def asked_for(given: argparse.Namespace) -> Edit | None:
    """The change that the flags ask for."""
    notes = given.note
    if notes == "-":
        notes = sys.stdin.read(LONGEST_NOTES + 2).removesuffix("\n")
    change = Edit(
        name=given.name,
        tag=told(given.tag),
        untag=[tag.strip() for tag in told(given.untag)],
        notes=notes,
        archived=True if given.archive else False if given.unarchive else None,
    )
    return None if change == Edit() else change


def change_runs(folder: Path, given: argparse.Namespace, change: Edit | None) -> int:
    """Change or delete the runs chosen; goes on behind one that cannot be, and then returns 1."""
    runs = run_table([run.path for run in find_runs(folder)], time.time())
    single = is_run(folder)
    if not single and not given.filter:
        raise UsageError(f"that would change all {len(runs.rows)} runs in {folder}; name one, or choose with --filter")
    if change is not None and given.delete:
        raise UsageError("--delete leaves nothing that could be called or tagged")
    rows = chosen(runs, parse(given.filter, runs.keys), given.sort, archived=True)
    paths = [folder if single else folder / row.name for row in rows]
    if given.delete and not (given.yes or agreed(rows)):
        print("nothing was deleted")
        return 1
    failed = 0
    for path in paths:
        try:
            if change is None:
                delete(path)
            else:
                edit(path, change)
        except EsperError as problem:
            failed += 1
            print(f"esper: {visible(problem)}", file=sys.stderr)
    done = len(paths) - failed
    print(f"{done} run{'' if done == 1 else 's'} {'deleted' if given.delete else 'changed'}")
    return 1 if failed else 0


def agreed(rows: Sequence[RunRow]) -> bool:
    """Whether a person says that these may be deleted. Raises ``UsageError`` where nobody can be asked."""
    if not rows:
        return True
    if not sys.stdin.isatty():
        raise UsageError("--delete asks before it deletes, and nobody is there to answer; --yes deletes at once")
    print(*(f"  {visible(row.name)}  {visible(row.title or '')}".rstrip() for row in rows), sep="\n")
    answer = input(f"Delete {len(rows)} run{'' if len(rows) == 1 else 's'} with all that is in them? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def notes_of(run: Path) -> str:
    """What a person wrote of one run, line by line."""
    try:
        notes = read_notes(run).notes
    except DataError:  # the table has said so
        return ""
    return "".join(f"  {visible(line)}\n" for line in notes.split("\n")) if notes else ""
