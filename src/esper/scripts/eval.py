"""``esper eval``: a saved policy on held-out seeds beside static, random, the best fixed schedule and the heuristic."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esper.karn.stats import Interval, interval
from esper.leyline import Metric, Policy
from esper.nissa.manifest import Setting
from esper.run.assembly import Workload, build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import play_seeds
from esper.run.search import Found, find_schedule
from esper.run.session import Announcement, Session, SessionConfig, open_session
from esper.scripts.cli import Parser
from esper.simic.world import held_out_seed
from esper.tamiyo.policies import SchedulePolicy, make_seeded
from esper.tamiyo.policies.learned import load_policy
from esper.tasks import get_task
from esper.tolaria.executor import EpisodeResult

POLICY = "policy"


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


@dataclass(frozen=True, slots=True)
class Line:
    """One arm of the table; ``difference`` is policy minus arm, paired by seed, up meaning better."""

    arm: str
    test: Interval | None
    difference: Interval | None
    kept: float
    parameters: float
    macs: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    torch.set_num_threads(args.threads)
    path = Path(args.policy)
    saved = load_policy(path / "policy.safetensors" if path.is_dir() else path)
    length = args.episode_length or saved.card.get("episode_length")
    config = RunConfig(
        task=args.task or str(saved.card.get("task", "digits")),
        policy="ppo",
        compare=tuple(name.strip() for name in args.compare.split(",") if name.strip()),
        episodes=args.episodes,
        max_epochs=length,
        seed=args.seed,
        device=args.device,
        threads=args.threads,
        run_dir=args.run_dir,
    )
    load = workload(get_task(config.task), config)
    console = Console(highlight=False)
    with open_session(_session_config(config, load, path)) as session:
        session.announce("eval", _announcement(load, config))
        arms: dict[str, Policy] = {POLICY: saved.player(greedy=args.greedy or None)}
        arms |= comparisons(config, load, args.search_seeds, console)
        results = _play(session, load, config, arms)
    metric = load.task.metric
    console.print(table(summarise(results, metric), metric))
    console.print(Text.assemble(("run ", "dim"), str(session.path)), soft_wrap=True)
    return 0


def comparisons(config: RunConfig, load: Workload, search_seeds: int, console: Console | None) -> dict[str, Policy]:
    """The arms to compare with; the schedule is searched on seeds of its own."""
    arms: dict[str, Policy] = {}
    for name in config.compare:
        if name == "schedule":
            found = find_schedule(config, load, search_seeds)
            arms[name] = SchedulePolicy(found.entries)
            if console is not None:
                console.print(Text(describe(found, load.task.metric), style="dim"), soft_wrap=True)
        else:
            arms[name] = make_seeded(name, config.seed)
    return arms


def describe(found: Found, metric: Metric) -> str:
    """One line about the schedule."""
    growth = ", ".join(f"{e.action.blueprint} in {e.action.slot} after epoch {e.epoch}" for e in found.entries)
    return (
        f"best of {found.schedules} schedules: {growth}; validation {metric.name} {found.metric:.1f} {metric.unit}, "
        f"{found.macs:.3g} MACs to find"
    )


def summarise(results: Mapping[str, Sequence[EpisodeResult]], metric: Metric) -> list[Line]:
    """The table's lines; the first arm is what the others are compared with."""
    sign = 1.0 if metric.higher_is_better else -1.0
    scores = {arm: [_test(result) for result in played] for arm, played in results.items()}
    first = next(iter(scores.values()))
    lines = []
    for i, (arm, played) in enumerate(results.items()):
        paired = [sign * (mine - other) for mine, other in zip(first, scores[arm], strict=True)]
        n = len(played)
        lines.append(
            Line(
                arm,
                interval(scores[arm]),
                None if i == 0 else interval(paired),
                sum(sum(result.view.fossilized.values()) for result in played) / n,
                sum(result.view.host_parameters + result.view.seed_parameters for result in played) / n,
                sum(result.total_macs for result in played) / n,
            )
        )
    return lines


def table(lines: Sequence[Line], metric: Metric) -> Table:
    """For people."""
    view = Table(
        box=box.SIMPLE_HEAD,
        title="held-out seeds, means with 95 % t intervals; differences are policy minus arm, paired by seed",
        title_style="dim",
        title_justify="left",
    )
    view.add_column("arm", style="bold")
    headings = (f"test {metric.name} {metric.unit}".strip(), "policy better by", "kept", "parameters", "MACs")
    for heading in headings:
        view.add_column(heading, justify="right")
    for line in lines:
        view.add_row(*cells(line))
    return view


def cells(line: Line) -> tuple[str, ...]:
    """One line of the table as text."""
    return (
        line.arm,
        _shown(line.test),
        "" if line.difference is None else _shown(line.difference, "+"),
        f"{line.kept:.1f}",
        f"{line.parameters:,.0f}",
        f"{line.macs:.3g}",
    )


def _shown(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return "–"
    around = "" if value.half is None else f" ± {value.half:.2f}"
    return f"{value.mean:{sign}.2f}{around}"


def _test(result: EpisodeResult) -> float:
    return math.nan if result.test_metric is None else result.test_metric


def _play(
    session: Session, load: Workload, config: RunConfig, arms: Mapping[str, Policy]
) -> dict[str, list[EpisodeResult]]:
    executor = build_executor(load, config, session.emit)
    seeds = [held_out_seed(config.seed, number) for number in range(config.episodes)]
    played: dict[str, list[EpisodeResult]] = {arm: [] for arm in arms}
    for results in play_seeds(executor, arms, seeds, load.max_epochs):
        for arm, result in zip(arms, results, strict=True):
            played[arm].append(result)
    return played


def _session_config(config: RunConfig, load: Workload, policy: Path) -> SessionConfig:
    said = {"task": config.task, "policy": str(policy), "episodes": config.episodes, "max_epochs": load.max_epochs}
    return SessionConfig(
        kind="eval",
        run_dir=config.run_dir,
        manifest={
            "config": {name: Setting("flag", value) for name, value in said.items()},
            "seeds": {"run": config.seed},
            "data": {"digest": load.task.data.digest, "source": load.task.data.source},
        },
    )


def _announcement(load: Workload, config: RunConfig) -> Announcement:
    task = load.task
    return Announcement(
        task=task.name,
        policy="ppo",
        metric=task.metric,
        slots=tuple(task.sites),
        blueprints=task.blueprints,
        episodes=config.episodes,
        envs=1 + len(config.compare),
        max_epochs=load.max_epochs,
        device=load.device,
        examples={name: len(split) for name, split in task.data.splits().items()},
        host_parameters=sum(p.numel() for p in task.host().parameters()),
    )
