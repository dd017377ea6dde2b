"""``esper eval``: a saved policy on held-out seeds beside static, random, the best fixed schedule and the heuristic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from esper.leyline import UsageError
from esper.run.config import RunConfig, named_code
from esper.scripts.cli import Parser


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``esper eval``."""
    parser = Parser(prog="esper eval", description="Play a saved policy on hosts that training never saw.")
    parser.add_argument("policy", metavar="POLICY", help="a policy.safetensors, or a run directory that holds one")
    parser.add_argument("--task", help="default: the task that it was trained on")
    parser.add_argument("--episodes", type=int, default=10, metavar="N", help="held-out seeds (default 10)")
    parser.add_argument("--episode-length", type=int, metavar="N", help="epochs (default: as in training)")
    parser.add_argument("--seed", type=int, default=1, help="of the evaluation (default 1)")
    parser.add_argument("--compare", default="static,random,schedule,heuristic", metavar="NAMES")
    parser.add_argument("--search-seeds", type=int, default=2, metavar="N", help="seeds to find the schedule on")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest choices instead of drawing")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--run-dir", metavar="DIR", help="where the run goes (default: a fresh one below runs/)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    from esper.scripts.eval_table import summarise, table
    from esper.simic.evaluation import PolicyEvaluation, evaluate
    from esper.tamiyo.policies.learned import load_policy

    path = Path(args.policy)
    path = path / "policy.safetensors" if path.is_dir() else path
    card = load_policy(path).card
    task = str(args.task or card.get("task", "digits"))
    if args.task is None and named_code({"task": task}):
        raise UsageError(f"{path}: it was trained on {task!r}, code that is imported only where named: --task {task}")
    config = RunConfig(
        task=task,
        policy="ppo",
        compare=tuple(name.strip() for name in args.compare.split(",") if name.strip()),
        episodes=args.episodes,
        max_epochs=args.episode_length or card.get("episode_length"),
        seed=args.seed,
        device=args.device,
        threads=args.threads,
        run_dir=args.run_dir,
    )
    console = Console(highlight=False)
    found = evaluate(
        PolicyEvaluation(path, config, args.search_seeds, args.greedy),
        lambda text: console.print(Text(text, style="dim"), soft_wrap=True),
    )
    console.print(table(summarise(found.results, found.metric), found.metric))
    console.print(Text.assemble(("run ", "dim"), str(found.run_dir)), soft_wrap=True)
    return 0
