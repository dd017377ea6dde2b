"""``esper sweep``: search settings with Optuna. Every trial plays the same seeds, and is a run of its own.

    esper sweep heuristic --task digits --over lr=0.001..0.1:log --over incubation=probe|graft --into runs/lr
    esper runs runs/lr --sort=-result

The same command again goes on with what was interrupted; more --trials make it longer.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from esper.leyline import UsageError
from esper.run.config import HOST, CommonConfig, read_config_file, resolve
from esper.scripts.cli import Parser
from esper.scripts.train import KINDS, add_settings, given_flags

if TYPE_CHECKING:
    from esper.bench.sweep import Play, SweepPlan, TrialResult

_OWN: Final = ("over", "trials", "into", "sweep_seed")


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper sweep``: settings as ``esper train`` has them, and what is searched."""
    parser = Parser(prog="esper sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, (text, of) in KINDS.items():
        kind = kinds.add_parser(name, help=text)
        own = kind.add_argument_group("what to search")
        own.add_argument(
            "--over", action="append", metavar="NAME=RANGE", help="LOW..HIGH, LOW..HIGH:log or VALUE|VALUE; repeat it"
        )
        own.add_argument("--trials", type=int, metavar="N", help="in all (default: 20)")
        own.add_argument("--into", type=Path, metavar="FOLDER", help="where the runs and the study go")
        own.add_argument("--sweep-seed", type=int, metavar="N", help="of Optuna's draws (default: 0)")
        groups = add_settings(kind, of)
        groups[HOST].add_argument("--config", metavar="FILE", help="TOML or JSON with any of these keys; flags win")
    return parser


def main(argv: Sequence[str]) -> int:
    """Search; returns the exit status."""
    flags = given_flags(argv, build_parser())
    kind, path = flags.pop("kind"), flags.pop("config", None)
    asked = {name: flags.pop(name, None) for name in _OWN}
    of: type[CommonConfig] = KINDS[kind][1]
    if asked["into"] is None:
        raise UsageError("--into FOLDER is needed: the runs and the study go there")
    settings = {**({} if path is None else read_config_file(path)), **flags}
    if "run_dir" in settings:
        raise UsageError("run_dir is every trial's own; --into says where they are")
    # torch is imported here, so that asking for help costs none
    from esper.bench.sweep import SweepPlan, axis, best_of, sweep
    from esper.tasks import get_task

    axes = tuple(axis(of, text) for text in asked["over"] or ())
    given = {name: asked[key] for name, key in (("trials", "trials"), ("seed", "sweep_seed")) if asked[key] is not None}
    config = resolve(of, settings).config
    metric = get_task(config.task).metric
    plan = SweepPlan(kind, settings, axes, higher_is_better=metric.higher_is_better, **given)
    console = Console(highlight=False)
    found = sweep(plan, asked["into"], _player(kind), lambda result: _say(console, line(result, metric.unit)))
    best = best_of(plan, found)
    if best is None:
        _say(console, "no trial came to an end")
        return 1
    _say(console, *ending(plan, best, found[0], asked["into"], metric.unit))
    return 0


def _player(kind: str) -> Play:
    """Plays a run of that kind in this process, and keeps what it prints to itself."""

    def play(settings: Mapping[str, Any], path: Path, going_on: bool) -> None:
        from esper.run.resume import ResumeRequest

        if kind == "ppo":
            from esper.scripts.ppo import run_ppo as run
        else:
            from esper.scripts.heuristic import run_heuristic as run
        asked = ResumeRequest(path) if going_on else None
        with redirect_stdout(io.StringIO()):
            run({**settings, "quiet": True}, {}, asked)

    return play


def line(result: TrialResult, unit: str) -> str:
    """One run in one line."""
    said = "  ".join(f"{name}={_short(value)}" for name, value in result.chosen.items())
    if result.why is not None:
        return f"{result.name}  {said}  failed: {result.why}"
    return f"{result.name}  {said}  validation {result.mean:.4g} {unit}, {_seeds(len(result.validation))}"


def ending(plan: SweepPlan, best: TrialResult, base: TrialResult, folder: Path, unit: str) -> list[str]:
    """What was found, and whether it is better than what was there."""
    from esper.bench.sweep import lead

    said = ", ".join(f"{name} {_short(value)}" for name, value in best.chosen.items())
    lines = [f"best by validation: {best.name}, {said}"]
    ahead = lead(plan, best, base)
    if ahead is not None:
        if ahead.low is not None and ahead.high is not None:
            bounds = f" ({ahead.low:.4g} to {ahead.high:.4g})"
        else:
            bounds = f" ({', '.join(f'{value:.4g}' for value in ahead.values)})" if ahead.values else ""
        lines.append(
            f"on the test split it is ahead of the settings that it started from by {ahead.mean:.4g}{bounds} {unit}, "
            f"paired over {_seeds(ahead.n)}"
        )
    return [*lines, f"all runs: esper runs {folder} --sort={'-' if plan.higher_is_better else ''}result"]


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(console: Console, *lines: str) -> None:
    for each in lines:
        console.print(Text(each), soft_wrap=True)


if __name__ == "__main__":
    from esper.run.stopping import as_program
    from esper.scripts.main import guarded

    sys.exit(as_program(lambda: guarded(lambda: main(sys.argv[1:]))))
