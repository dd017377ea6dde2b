"""What a trained policy is worth: its learning curve, and held-out hosts beside its controls, as tables in a page.

    uv run esper train ppo --rounds 80 --episode-length 14 --hosts 16 --ppo-epochs 8 --run-dir runs/ppo
    uv run python benchmarks/ppo.py runs/ppo --episodes 10 --output docs/ppo.md

Replaces what stands between the two marks in the page. The untrained policy has the same weights as the trained one
began with; the schedule is found on seeds that neither training nor evaluation uses. All arms share seeds.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from esper.leyline import Metric, Policy
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.nissa.rundir import RunDirectory
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import play_seeds
from esper.run.search import find_schedule
from esper.scripts.eval_table import cells, summarise
from esper.simic.evaluation import comparisons, describe
from esper.simic.mdp import held_out_seed
from esper.simic.vectorized import fresh_network
from esper.tamiyo.policies import SchedulePolicy
from esper.tamiyo.policies.learned import LearnedPolicy, load_policy
from esper.tasks import get_task
from esper.tolaria.executor import EpisodeResult

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Curve:
    """One training run: updates in order, finished episodes, seconds, multiply-accumulates."""

    updates: list[dict[str, Any]]
    ended: list[float]
    """Seconds into the run when each update was done."""
    episodes: int
    seconds: float
    macs: int
    """Of hosts, of acting and of learning."""
    detected: list[str]


def read_curve(directory: Path) -> Curve:
    """From the run's journal alone."""
    updates, ended, macs, episodes, times, detected = [], [], 0, 0, [], []
    for event in read_journal(directory):
        if event.timestamp is not None:
            times.append(event.timestamp)
        if event.event_type is T.PPO_UPDATE_COMPLETED:
            updates.append(event.data)
            ended.append(times[-1] - times[0])
            macs += event.data.get("update_macs", 0)
        elif event.event_type is T.EPISODE_ENDED:
            macs += event.data["total_macs"]
            episodes += 1
        elif event.event_type.name.endswith(("_DETECTED", "_SUSPECTED")):
            detected.append(f"round {event.data['round']}: {event.message}")
    return Curve(updates, ended, episodes, times[-1] - times[0], macs, detected)


def policy_macs(curve: Curve) -> str:
    """The policy's own part of the run's arithmetic; journals of before it was counted do not hold it."""
    if not all({"acting_macs", "update_macs"} <= update.keys() for update in curve.updates):
        return "the policy's own were not counted"
    acting, learning = (sum(update[name] for update in curve.updates) for name in ("acting_macs", "update_macs"))
    share = (acting + learning) / curve.macs
    return f"{share:.1%} the policy's own: {acting:.3g} to act, {learning:.3g} to learn"


def curve_table(curve: Curve, parts: int = 8) -> Iterable[str]:
    """Means over equal stretches of rounds."""
    yield "| rounds | return | objective gain | entropy, nats | KL, nats | explained variance |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    size = max(1, len(curve.updates) // parts)
    for begin in range(0, len(curve.updates), size):
        rows = curve.updates[begin : begin + size]

        def mean(name: str, rows: Sequence[dict[str, Any]] = rows) -> float:
            return fmean(row[name] for row in rows if name in row)

        yield (
            f"| {rows[0]['round']}-{rows[-1]['round']} | {mean('mean_episode_return'):+.2f} | "
            f"{mean('mean_objective_gain'):+.2f} | {mean('entropy'):.2f} | {mean('kl'):.3f} | "
            f"{mean('explained_variance'):.2f} |"
        )


def held_out(
    directory: Path, arms: Mapping[str, Policy], episodes: int, seed: int, search_seeds: int
) -> tuple[dict[str, list[EpisodeResult]], str, Metric]:
    """Every arm, the controls and the best schedule on the same held-out hosts of the run's task; which schedule."""
    card = load_policy(directory / "policy.safetensors").card
    config = RunConfig(
        task=card["task"],
        policy="ppo",
        compare=("static", "random", "heuristic"),
        episodes=episodes,
        max_epochs=card["episode_length"],
        seed=seed,
        device="cpu",
    )
    load = workload(get_task(config.task), config)
    found = find_schedule(config, load, search_seeds)
    everybody = {
        **arms,
        **comparisons(config, load, 0),
        "best schedule": SchedulePolicy(found.entries),
    }
    executor = build_executor(load, config, lambda event: None)
    played: dict[str, list[EpisodeResult]] = {arm: [] for arm in everybody}
    seeds = [held_out_seed(seed, number) for number in range(episodes)]
    for results in play_seeds(executor, everybody, seeds, load.max_epochs):
        for arm, result in zip(everybody, results, strict=True):
            played[arm].append(result)
    return played, describe(found, load.task.metric), load.task.metric


def evaluate(directory: Path, episodes: int, seed: int, search_seeds: int) -> Iterable[str]:
    """Held-out hosts: the policy, likeliest choices, untrained, and the controls."""
    saved = load_policy(directory / "policy.safetensors")
    untrained = fresh_network(saved.card["seed"], cells=saved.network.config.cells)
    arms: dict[str, Policy] = {
        "policy": LearnedPolicy(saved.network),
        "policy, likeliest choices": LearnedPolicy(saved.network, greedy=True),
        "policy, untrained": LearnedPolicy(untrained),
    }
    played, schedule, metric = held_out(directory, arms, episodes, seed, search_seeds)
    yield f"The schedule: {schedule}."
    yield ""
    yield f"| arm | test {metric.name}, {metric.unit} | policy better by | kept | parameters | MACs an episode |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for line in summarise(played, metric):
        yield f"| {' | '.join(cells(line))} |"


def page(directory: Path, episodes: int, seed: int, search_seeds: int) -> str:
    """The measured part of the page."""
    curve = read_curve(directory)
    settings = RunDirectory.open(directory).manifest.config
    given = {name: each.value for name, each in settings.items() if each.source == "flag" and name != "run_dir"}
    asked = ", ".join(f"{name} {value}" for name, value in given.items())
    lines = [
        f"Flags: {asked}. {len(curve.updates)} rounds played, {curve.episodes} episodes (static controls included), "
        f"{curve.macs:.3g} MACs ({policy_macs(curve)}) and {curve.seconds / 60:.0f} minutes of wall time "
        f"on {os.cpu_count()} shared cores ({platform.machine()}, torch {torch.__version__}, one thread).",
        "",
        *curve_table(curve),
        "",
        *(f"- {text}" for text in curve.detected),
        "",
        f"{episodes} held-out hosts; means with 95 % t intervals, differences paired by host.",
        "",
        *evaluate(directory, episodes, seed, search_seeds),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of an `esper train ppo` run")
    measure(parser, lambda given: page(given.run, given.episodes, given.seed, given.search_seeds), BEGIN, END)


def measure(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], str], begin: str, end: str) -> None:
    """Add what every such script can be asked, do the work on one thread, print its text and put it in the page."""
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--search-seeds", type=int, default=3, help="hosts that the schedule is found on")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = work(arguments)
    print(text)
    if arguments.output is not None:
        fill(arguments.output, text, begin, end)


def fill(path: Path, text: str, begin: str, end: str) -> None:
    """Put ``text`` between two marks of a page."""
    whole = path.read_text(encoding="utf-8")
    before, _, rest = whole.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
