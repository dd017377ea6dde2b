"""Several training seeds of PPO beside doing nothing and acting at random, as tables in a page.

    for seed in 1 2 3 4 5; do uv run esper train ppo --rounds 40 --seed $seed --run-dir runs/seed$seed; done
    uv run python benchmarks/ppo_seeds.py runs/seed1 runs/seed2 runs/seed3 runs/seed4 runs/seed5 --output docs/ppo.md

Replaces what stands between the two marks in the page. Returns are what PPO is paid, relative to the static host of
the same seed; the random policy and the static one play the hosts that each seed learns on, and the same account pays.
Then all policies, which end there, play the same held-out hosts as their controls.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from ppo import Curve, held_out, measure, read_curve

from esper.karn.stats import interval, t_quantile
from esper.leyline import EnvSpec, Policy
from esper.nissa.rundir import RunDirectory
from esper.simic.env import GrowConfig
from esper.simic.mdp import episode_seed
from esper.simic.rewards import RewardConfig
from esper.tamiyo.policies import RandomPolicy, StaticPolicy
from esper.tamiyo.policies.learned import LearnedPolicy, load_policy

BEGIN, END = "<!-- seeds: begin -->", "<!-- seeds: end -->"
MINUTES = 5.0


def settings(directory: Path) -> dict[str, object]:
    """What the run was asked to do."""
    return {name: each.value for name, each in RunDirectory.open(directory).manifest.config.items()}


def returns(directory: Path, policy: Policy) -> float:
    """Mean return of one episode on each host that the run learnt on."""
    asked = settings(directory)
    reward = RewardConfig(asked["reward"], asked["rent"], asked["rent_on"], asked["control"])  # type: ignore[arg-type]
    world, _ = GrowConfig(str(asked["task"]), asked["episode_length"], reward).world()  # type: ignore[arg-type]
    seeds = [episode_seed(int(str(asked["seed"])), number) for number in range(int(str(asked["hosts"])))]
    views = world.begin(seeds)
    policy.reset([EnvSpec(i, 0, seed, world.config.max_epochs) for i, seed in enumerate(seeds)])
    for _ in range(world.config.max_epochs):
        outcomes = world.step(policy.decide(views))
        views = [outcome.view for outcome in outcomes]
    return fmean(outcome.tracker.paid for outcome in outcomes)


def early_slope(curve: Curve) -> str:
    """Rounds of the first minutes, the slope of their mean return in points a round, and its lower 95 % bound."""
    count = sum(each <= 60 * MINUTES for each in curve.ended)
    paid = [row["mean_episode_return"] for row in curve.updates]
    if count < 3:
        return f"{count}, –"
    rounds, early = np.arange(count), np.array(paid[:count])
    slope, level = np.polyfit(rounds, early, 1)
    residual = early - slope * rounds - level
    error = np.sqrt((residual**2).sum() / (count - 2) / ((rounds - rounds.mean()) ** 2).sum())
    return f"{count}, {slope:+.2f} ({slope - t_quantile(0.975, count - 2) * error:+.2f})"


def shown(values: Sequence[float], sign: str = "+") -> str:
    """Mean with its interval."""
    found = interval(values)
    if found is None or found.low is None:
        return "–"
    return f"{found.mean:{sign}.2f} ({found.low:{sign}.2f} to {found.high:{sign}.2f})"


def training_table(directories: Sequence[Path]) -> Iterable[str]:
    """One line per training seed, and the means with 95 % t intervals over the seeds."""
    head = f"first {MINUTES:.0f} minutes: rounds, slope (lower 95 % bound)"
    yield f"| training seed | first tenth | last tenth | random | static | minutes | {head} |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    columns: dict[str, list[float]] = {"first": [], "last": [], "random": [], "static": []}
    for directory in directories:
        curve = read_curve(directory)
        paid = [row["mean_episode_return"] for row in curve.updates]
        tenth = max(1, len(paid) // 10)
        line = {
            "first": fmean(paid[:tenth]),
            "last": fmean(paid[-tenth:]),
            "random": returns(directory, RandomPolicy(seed=1)),
            "static": returns(directory, StaticPolicy()),
        }
        for name, value in line.items():
            columns[name].append(value)
        cells = " | ".join(f"{value:+.2f}" for value in line.values())
        seed = settings(directory)["seed"]
        yield f"| {seed} | {cells} | {curve.seconds / 60:.0f} | {early_slope(curve)} |"
    yield f"| mean (95 % interval) | {' | '.join(shown(values) for values in columns.values())} | | |"


def held_out_table(
    directory: Path, arms: Mapping[str, Policy], episodes: int, seed: int, search_seeds: int
) -> Iterable[str]:
    """One line per arm; all policies together are paired with each control by host."""
    played, schedule, metric = held_out(directory, arms, episodes, seed, search_seeds)
    scores = {
        arm: [math.nan if result.test_metric is None else result.test_metric for result in results]
        for arm, results in played.items()
    }
    together = [fmean(each) for each in zip(*(scores[arm] for arm in arms), strict=True)]
    yield f"The schedule: {schedule}."
    yield ""
    yield f"| arm | test {metric.name}, {metric.unit} | policies better by | parameters | MACs an episode |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    yield f"| {len(arms)} policies, mean of each host | {shown(together, '')} | | | |"
    for arm, results in played.items():
        better = "" if arm in arms else shown([a - b for a, b in zip(together, scores[arm], strict=True)])
        size = fmean(result.view.host_parameters + result.view.seed_parameters for result in results)
        macs = fmean(result.total_macs for result in results)
        yield f"| {arm} | {shown(scores[arm], '')} | {better} | {size:,.0f} | {macs:.3g} |"


def page(directories: Sequence[Path], episodes: int, seed: int, search_seeds: int) -> str:
    """The measured part of the page."""
    arms: dict[str, Policy] = {}
    for directory in directories:
        saved = load_policy(directory / "policy.safetensors")
        arms[f"policy of seed {settings(directory)['seed']}"] = LearnedPolicy(saved.network)
    lines = [
        "Mean return of an episode, in points relative to the static host of the same seed:",
        "",
        *training_table(directories),
        "",
        f"{episodes} held-out hosts; means with 95 % t intervals, differences paired by host.",
        "",
        *held_out_table(directories[0], arms, episodes, seed, search_seeds),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of `esper train ppo` runs")
    measure(parser, lambda given: page(given.runs, given.episodes, given.seed, given.search_seeds), BEGIN, END)


if __name__ == "__main__":
    main()
