"""``esper bench``: does growing pay? Arms on paired seeds, tuned with equal trials, compared at equal compute."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from esper.bench.arms import ARMS, FULL, QUICK, chosen
from esper.bench.settings import DEFAULT, MOST_TRIALS, BenchConfig
from esper.scripts.cli import Parser, option_value

QUICKLY = {"seeds": 5, "trials": 4, "tuning_seeds": 1}
"""What ``--quick`` takes where nothing else is asked for."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper bench``."""
    arms = "\n".join(f"  {arm.name:<16} {arm.what}" for arm in ARMS.values())
    parser = Parser(
        prog="esper bench",
        description=__doc__,
        epilog=f"arms:\n{arms}\n\nThe same command goes on with a bench that was interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", default=DEFAULT.task, help=f"default: {DEFAULT.task}")
    parser.add_argument("--task-option", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("--arms", metavar="NAMES", help=f"comma-separated; default: {','.join(FULL)}")
    parser.add_argument("--grown", default=DEFAULT.grown, metavar="ARM", help="whose compute the others get")
    parser.add_argument("--quick", action="store_true", help="headline score in minutes: few arms, seeds and trials")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"paired seeds (default {DEFAULT.seeds})")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: the task's own")
    parser.add_argument("--trials", type=int, metavar="N", help=f"settings every arm tries (default {MOST_TRIALS})")
    parser.add_argument("--tuning-seeds", type=int, metavar="N", help=f"default {DEFAULT.tuning_seeds}")
    parser.add_argument("--seed", type=int, default=DEFAULT.seed, help="all others derive from it")
    parser.add_argument("--resplit", action="store_true", help="each seed draws a split of its own, where the task can")
    parser.add_argument("--policy-checkpoint", metavar="FILE", help="a policy.safetensors, played as the arm policy")
    parser.add_argument("--device", default=DEFAULT.device, help="default: cpu")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--run-dir", metavar="DIR", help="where it goes, or is gone on with (default: below runs/)")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the tables between the marks of PAGE, too")
    parser.add_argument("--into-name", metavar="NAME", help="of the marks (default: the task)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """The bench itself. Torch is imported here, so that asking for help costs none."""
    import torch

    from esper.bench.analysis import FEWEST, analyse
    from esper.bench.campaign import Campaign, work_of
    from esper.bench.report import into_page, tables, write_report
    from esper.bench.store import Store
    from esper.bench.trial import task_of

    torch.set_num_threads(1)
    config = configured(args)
    console = Console(highlight=False)
    work = work_of(config)
    chosen(config.arms, config.grown)
    store = Store.open(args.run_dir, config, work)
    _say(console, f"bench {store.path}")
    if len(store):
        torn = f"; {store.torn} line was torn and is run again" if store.torn else ""
        _say(console, f"going on with {len(store)} finished trials{torn}")
    if config.seeds < FEWEST:
        _say(console, f"{config.seeds} seed is too few for an interval; give --seeds {FEWEST} or more")
    evidence = Campaign(config, work, store, _progress(console)).run()
    findings = analyse(evidence, config.grown, task_of(work).metric)
    report = write_report(store.path / "report", config, work, evidence, findings)
    blocks = tables(config, work, evidence, findings)
    console.print(Markdown("\n\n".join(blocks[1:])))
    if args.into is not None:
        into_page(args.into, args.into_name or work.task, "\n\n".join(blocks))
    _say(console, f"report {report}")


def configured(args: argparse.Namespace) -> BenchConfig:
    """The configuration that the flags ask for."""
    given = {name: getattr(args, name) for name in ("seeds", "epochs", "trials", "tuning_seeds", "workers")}
    numbers: dict[str, Any] = {**(QUICKLY if args.quick else {}), **{k: v for k, v in given.items() if v is not None}}
    default = QUICK if args.quick else FULL
    names = default if args.arms is None else tuple(name.strip() for name in args.arms.split(",") if name.strip())
    if args.policy_checkpoint is not None and args.arms is None:
        names = (*names, "policy")
    return BenchConfig(
        task=args.task,
        options=dict(option_value("--task-option", text) for text in args.task_option),
        arms=names,
        grown=args.grown,
        seed=args.seed,
        resplit=args.resplit,
        policy=args.policy_checkpoint,
        device=args.device,
        **numbers,
    )


def _progress(console: Console) -> Any:
    started = time.monotonic()

    def told(done: int, of: int, what: str) -> None:
        _say(console, f"{time.monotonic() - started:6.0f} s  {done}/{of}  {what}")

    return told


def _say(console: Console, text: str) -> None:
    console.print(Text(text, style="dim"), soft_wrap=True)
