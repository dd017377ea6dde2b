"""What a saved policy is worth: on hosts that training never saw, beside its controls, on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from esper.leyline import Metric, Policy
from esper.nissa.manifest import Setting
from esper.run.assembly import Workload, build_executor
from esper.run.config import RunConfig
from esper.run.open import RunOpening, RunRequest, open_run, prepare
from esper.run.play import play_seeds
from esper.run.search import FoundSchedule, find_schedule
from esper.simic.mdp import held_out_seed
from esper.tamiyo.policies import SchedulePolicy, make_seeded
from esper.tamiyo.policies.learned import load_policy
from esper.tolaria.executor import EpisodeResult

POLICY: Final = "policy"


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """What to play."""

    policy: Path
    config: RunConfig
    search_seeds: int = 2
    """Seeds to find the schedule on."""
    greedy: bool = False
    """Whether the policy takes its likeliest choices instead of drawing."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came of it."""

    results: Mapping[str, Sequence[EpisodeResult]]
    """By arm, the policy first."""
    metric: Metric
    run_dir: Path


def evaluate(asked: PolicyEvaluation, tell: Callable[[str], None] | None = None) -> Evaluated:
    """Play the policy and its controls on held-out seeds, in a run of its own."""
    settings = {each.name: getattr(asked.config, each.name) for each in fields(asked.config)}
    ready = prepare(RunRequest("eval", RunConfig, settings))
    config, load, saved = ready.config, ready.load, load_policy(asked.policy)
    said = {
        "task": config.task,
        "policy": str(asked.policy),
        "episodes": config.episodes,
        "max_epochs": load.max_epochs,
    }
    where = ready.session({name: Setting("flag", value) for name, value in said.items()})
    what = ready.announcement("ppo", config.episodes, 1 + len(config.compare))
    with open_run(RunOpening(where, what, ready.sink)) as session:
        arms: dict[str, Policy] = {POLICY: saved.player(greedy=asked.greedy or None)}
        arms |= comparisons(config, load, asked.search_seeds, tell)
        executor = build_executor(load, config, ready.sink.emit)
        seeds = [held_out_seed(config.seed, number) for number in range(config.episodes)]
        played: dict[str, list[EpisodeResult]] = {arm: [] for arm in arms}
        for results in play_seeds(executor, arms, seeds, load.max_epochs):
            for arm, result in zip(arms, results, strict=True):
                played[arm].append(result)
    return Evaluated(played, load.task.metric, session.path)


def comparisons(
    config: RunConfig, load: Workload, search_seeds: int, tell: Callable[[str], None] | None
) -> dict[str, Policy]:
    """The arms to compare with; the schedule is searched on seeds of its own, and ``tell`` is told of it."""
    arms: dict[str, Policy] = {}
    for name in config.compare:
        if name == "schedule":
            found = find_schedule(config, load, search_seeds)
            arms[name] = SchedulePolicy(found.entries)
            if tell is not None:
                tell(describe(found, load.task.metric))
        else:
            arms[name] = make_seeded(name, config.seed)
    return arms


def describe(found: FoundSchedule, metric: Metric) -> str:
    """One line about the schedule."""
    growth = ", ".join(f"{e.action.blueprint} in {e.action.slot} after epoch {e.epoch}" for e in found.entries)
    return (
        f"best of {found.schedules} schedules: {growth}; validation {metric.name} {found.metric:.1f} {metric.unit}, "
        f"{found.macs:.3g} MACs to find"
    )
