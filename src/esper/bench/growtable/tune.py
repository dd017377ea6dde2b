"""Learning on in real runs of the training worlds, where nothing is looked up and all that may grow is on offer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from esper.bench.growtable.check import FRESH
from esper.bench.growtable.host import TableHost
from esper.bench.growtable.learn import LearnPlan, improve
from esper.bench.growtable.play import play_freely
from esper.bench.growtable.real import RealEnvironments
from esper.bench.growtable.tabular import worth
from esper.bench.growtable.worlds import WorldFacts, WorldSpec
from esper.leyline import Policy
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.policies.learned import LearnedPolicy
from esper.tamiyo.policies.nurture import Nurture


@dataclass(frozen=True, slots=True)
class TunePlan:
    """How to learn on, and how to choose what is kept."""

    ppo: LearnPlan = field(
        default_factory=lambda: LearnPlan(updates=30, steps=24, entropy=(0.03, 0.003), learning_rate=5e-4)
    )
    each: int = 2
    """Rows of every world."""
    look_every: int = 5
    """Updates between two looks at what the policy is worth."""
    hosts: int = 4
    """Fresh hosts of every world that a look plays, the same each time."""


@dataclass(frozen=True, slots=True)
class Look:
    """After ``update`` updates: the mean objective by validation, and the mean return since the last look."""

    update: int
    objective: float
    mean_return: float | None
    entropy: float | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best network of all looks, the one that it began with included."""

    network: GrowthNetwork
    looks: tuple[Look, ...]
    steps: int
    macs: int
    """Of acting, learning, the hosts' training and the looks."""


def tune(network: GrowthNetwork, worlds: Sequence[WorldSpec], plan: TunePlan, tell: Callable[[Look], None]) -> Tuned:
    """Train a copy of ``network`` in real runs and keep what does best on fresh hosts, by validation."""
    pupil = copy.deepcopy(network)
    environments = RealEnvironments(worlds, plan.each, network.config, plan.ppo.reward)
    looks: list[Look] = []
    best = network
    looking, returns = 0, list[float]()

    def look(update: int, entropy: float | None) -> None:
        nonlocal best, looking
        objective, macs = objective_of(LearnedPolicy(pupil, greedy=True, nurture=Nurture()), worlds, plan.hosts)
        looking += macs
        if looks and objective > max(each.objective for each in looks):
            best = copy.deepcopy(pupil)
        looks.append(Look(update, objective, fmean(returns) if returns else None, entropy))
        returns.clear()
        tell(looks[-1])

    def after(update: int, mean_return: float, entropy: float) -> None:
        returns.append(mean_return)
        if update % plan.look_every == 0 or update == plan.ppo.updates:
            look(update, entropy)

    look(0, None)
    learned = improve(pupil, environments, plan.ppo, after)
    return Tuned(best, tuple(looks), learned.steps, learned.macs + environments.host_macs + looking)


def objective_of(policy: Policy, worlds: Sequence[WorldSpec], hosts: int) -> tuple[float, int]:
    """Mean objective by validation on ``hosts`` fresh hosts of each world, and what that took in MACs."""
    found, macs = [], 0
    for world in worlds:
        about = TableHost(world, WorldFacts.of(world), FRESH, {})
        for end in play_freely(world, range(FRESH, FRESH + hosts), policy, test=False):
            found.append(worth(about, end.validation_metric, end.view.seed_parameters))
            macs += end.total_macs
    return fmean(found), macs
