"""``esper runs prune [FOLDER]``: make room on the disk. Journals of runs that are over are compressed, and temporary
files that killed writes left beside one are removed with it; nothing that a run said is lost, and its checkpoints stay
as they are, unfinished ones too. With --delete the runs themselves go. Without --yes it only says what it would do.
Runs that go on, or of which that cannot be told, are left alone.

    esper runs prune
    esper runs prune --older 7d --yes
    esper runs prune --older 90d --filter 'tag=scrap' --delete --yes
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper.karn.filter import parse
from esper.karn.liveness import GROWING
from esper.karn.notes import delete
from esper.karn.runs import RunInfo, describe_run, find_runs, is_run, resolve_run
from esper.karn.runtable import chosen, run_table
from esper.karn.words import size
from esper.leyline import DataError, EsperError, UsageError, visible
from esper.nissa.journal import compress_journal, plain_segments
from esper.scripts.cli import Parser

LEAST: Final = 1 << 16
"""A shorter segment takes hardly less room when it is compressed."""
_SINCE: Final = "it was heard of since"
_UNITS: Final = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper runs prune``."""
    parser = Parser(prog="esper runs prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs", help="where runs are, or one of them (default: runs)")
    parser.add_argument("--older", metavar="AGE", help="only runs last heard of so long ago: 12h, 7d, 4w")
    parser.add_argument("--filter", default="", metavar="TERMS", help="only these, as esper runs has it: tag=scrap")
    parser.add_argument("--delete", action="store_true", help="remove the runs with all that is in them")
    parser.add_argument("--yes", action="store_true", help="do it; without it only what would be done is said")
    return parser


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to do in a run; ``why_not`` where it is left alone."""

    path: Path
    segments: list[Path]
    bytes: int
    why_not: str | None = None

    def line(self, deletes: bool) -> str:
        """For a person."""
        name = visible(self.path.name)
        if self.why_not is not None:
            return f"{name}: left alone: {visible(self.why_not)}"
        if deletes:
            return f"{name}: the run, with {size(self.bytes)} of journal"
        many = len(self.segments)
        return f"{name}: {many} segment{'' if many == 1 else 's'} to compress, {size(self.bytes)}"


def prune(argv: Sequence[str]) -> int:
    """Say what would be done, or do it; goes on behind a run with which it cannot be, and then returns 1."""
    given = build_parser().parse_args(argv)
    folder, now = folder_of(given.folder), time.time()
    older = None if given.older is None else age(given.older)
    if given.delete and older is None and not given.filter and not is_run(folder):
        raise UsageError(f"that would delete every run in {folder}; name one, or choose with --older or --filter")
    found = [look(path, now, older, given.delete) for path in paths(folder, given.filter, now)]
    ready = [each for each in found if each.why_not is None and (each.segments or given.delete)]
    shown = [each for each in found if each in ready or each.why_not not in (None, _SINCE)]
    if not given.yes:
        print(*(each.line(given.delete) for each in shown), sep="\n", end="\n" if shown else "")
        total = size(sum(each.bytes for each in ready))
        what = "deleted" if given.delete else "compressed"
        print(f"{total} in {_runs(len(ready))} would be {what}; --yes does it" if ready else "nothing to do")
        return 0
    failed, freed = 0, 0
    for each in ready:
        try:
            before = on_disk(each.path)
            delete(each.path) if given.delete else compress_journal(each.path, LEAST)
            freed += before - (0 if given.delete else on_disk(each.path))
        except (EsperError, OSError, MemoryError) as problem:
            failed += 1
            short = f"{each.path.name}: there is not enough memory to compress its journal, which is left as it was"
            print(f"esper: {visible(short if isinstance(problem, MemoryError) else problem)}", file=sys.stderr)
    done = len(ready) - failed
    print(f"{_runs(done)} {'deleted' if given.delete else 'compressed'}, {size(max(0, freed))} freed")
    return 1 if failed else 0


def paths(folder: Path, terms: str, now: float) -> list[Path]:
    """The runs chosen by a filter, those that were put away, too."""
    table = run_table([run.path for run in find_runs(folder)], now)
    rows = chosen(table, parse(terms, table.keys), archived=True)
    return [folder if is_run(folder) else folder / row.name for row in rows]


def look(path: Path, now: float, older: float | None, deletes: bool) -> Found:
    """What there is to do in one run."""
    info = describe_run(path)
    why_not = _why_not(info, now, older)
    segments = [] if why_not or deletes else plain_segments(path, LEAST)
    return Found(path, segments, info.bytes if deletes else sum(each.stat().st_size for each in segments), why_not)


def _why_not(info: RunInfo, now: float, older: float | None) -> str | None:
    if info.problem is not None:
        return info.state(now)
    heard = max((moment for moment in (info.last_time, info.grew) if moment is not None), default=info.created)
    if info.end_status is None and info.goes_on is not False:
        # on another machine its process cannot be seen, but its journal grows
        if info.goes_on or heard is None or now - heard < max(GROWING, _UNITS["d"]):
            return info.state(now)
    if older is not None and (heard is None or now - heard < older):
        return _SINCE
    return None


def age(text: str) -> float:
    """Seconds of ``12h``, ``7d`` or ``4w``. Raises ``UsageError``."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([hdw])", text.strip())
    if match is None:
        raise UsageError(f"--older {text!r}; legal: a number with h, d or w behind it, such as 12h, 7d, 4w")
    return float(match[1]) * _UNITS[match[2]]


def on_disk(path: Path) -> int:
    """Bytes of the files in a run."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def folder_of(given: str) -> Path:
    """The folder of runs, or the run, that a person means. Raises ``DataError`` and ``UsageError``."""
    folder = Path(given)
    if folder.is_dir():
        return folder
    if given == "runs":
        raise DataError(f"{folder}: no such folder")
    return resolve_run(given)


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"
