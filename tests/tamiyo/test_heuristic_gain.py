"""The heuristic on real data: it grows, it gains, and it does not live on names."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from esper.kasmina import blueprints
from esper.kasmina.layout import Layout
from esper.run.assembly import build_executor, workload
from esper.run.config import RunConfig
from esper.run.play import EpisodePlan, run_episodes
from esper.tamiyo.policies import HeuristicPolicy, StaticPolicy
from esper.tasks import TaskSpec, get_task

EPISODES = 10
T_95 = 2.262
"""Two-sided 95 % point of Student's t for 9 degrees of freedom."""


@cache
def played(name: str, renamed: bool) -> tuple[np.ndarray, list[int]]:
    """Gain in test points over the static host, and seeds fossilized, per paired seed."""
    task = get_task(name)
    config = RunConfig(task=name)
    load = workload(_renamed(task) if renamed else task, config)
    executor = build_executor(load, config, emit=lambda event: None)
    gains, kept = [], []
    policies = {"static": StaticPolicy(), "heuristic": HeuristicPolicy()}
    for (static, grown), _ in run_episodes(executor, policies, EpisodePlan(EPISODES, load.max_epochs)):
        gains.append(grown.test_metric - static.test_metric)
        kept.append(sum(grown.view.fossilized.values()))
    return np.array(gains), kept


def _renamed(task: TaskSpec) -> TaskSpec:
    """The same task with its slots and blueprints under other names, and listed in another order."""
    layouts = [layout for layout in Layout if set(task.blueprints) <= set(blueprints.names(layout))]
    aliases = {name: f"renamed_{i}" for i, name in enumerate(sorted(task.blueprints))}
    for name, alias in aliases.items():
        for layout in layouts:
            if alias not in blueprints.names(layout):
                blueprints.add(replace(blueprints.get(name, layout), name=alias, layouts=frozenset({layout})))
    sites = {f"place_{len(task.sites) - i}": path for i, path in enumerate(task.sites.values())}
    return replace(
        task,
        sites=dict(reversed(sites.items())),
        blueprints=tuple(aliases[name] for name in reversed(task.blueprints)),
    )


def half_interval(values: np.ndarray) -> float:
    return float(T_95 * values.std(ddof=1) / len(values) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("digits", 15.0), ("mnist1d", 8.0)])
def test_it_gains_and_keeps(name: str, least: float) -> None:
    gains, kept = played(name, renamed=False)
    assert gains.mean() - half_interval(gains) >= least
    assert sum(count > 0 for count in kept) >= 8


@pytest.mark.slow
def test_other_names_in_another_order_leave_the_gain_within_its_interval() -> None:
    (gains, _), (renamed, _) = played("digits", renamed=False), played("digits", renamed=True)
    assert abs(gains.mean() - renamed.mean()) <= half_interval(gains - renamed)
