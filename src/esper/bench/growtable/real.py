"""Real runs of several worlds at once, as environments for the learner: ``esper/Grow-v0``, with rules for nurture.

What can be chosen is what the table holds and all that it does not: any germination, at any time. Gates and pruning are
left to rules on evidence (:mod:`esper.tamiyo.policies.nurture`), as in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from esper.bench.growtable.host import METRIC, SPACE
from esper.bench.growtable.play import executor_of
from esper.bench.growtable.tabular import rented
from esper.bench.growtable.worlds import WorldSpec
from esper.leyline import Decision, EnvView, Sink
from esper.simic.collect import MaskedObservation, VectorStep
from esper.simic.mdp import GrowthMDP, MDPConfig, StepOutcome
from esper.simic.rewards import RewardConfig
from esper.simic.workers import WorkerPool
from esper.tamiyo.batch import observe, tables
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import to_action
from esper.tamiyo.network import GrowthNetworkConfig
from esper.tamiyo.policies.nurture import Nurture
from esper.tolaria.executor import Executor
from esper.tolaria.rng import derive


class RealEnvironments:
    """``each`` rows of every world; implements :class:`esper.simic.collect.RolloutEnvironments`.

    Hosts are fresh ones, which no table holds. The rows of a world end together and start again at once.
    """

    def __init__(
        self, worlds: Sequence[WorldSpec], each: int, config: GrowthNetworkConfig, reward: RewardConfig
    ) -> None:
        self.specs, self.each, self.size = tuple(worlds), each, each * len(worlds)
        self.heads = growth_heads(SPACE)
        self._config = config
        self._nurture = Nurture()
        self._worlds = [_world(spec, reward) for spec in worlds]
        self._episodes = [0] * len(worlds)
        self._seed = 0

    @property
    def host_macs(self) -> int:
        """Multiply-accumulates of the episodes that have ended."""
        return sum(world.spent_macs for world in self._worlds)

    def reset(self, seed: int) -> MaskedObservation:
        """Start everywhere; ``seed`` decides which hosts come when."""
        self._seed, self._episodes = seed, [0] * len(self.specs)
        for number in range(len(self.specs)):
            self._begin(number)
        return self._seen()

    def step(self, actions: Tensor) -> VectorStep:
        """One epoch in every row."""
        decisions = [Decision(to_action(SPACE, chosen), "the learner's draw") for chosen in actions.tolist()]
        outcomes: list[StepOutcome] = []
        for number, world in enumerate(self._worlds):
            outcomes += world.step(decisions[number * self.each : (number + 1) * self.each])
        ended = torch.tensor([outcome.ended for outcome in outcomes])
        final = observe(self._views(), SPACE, self._config) if ended.any() else None
        for number in range(len(self.specs)):
            if ended[number * self.each]:
                self._begin(number)
        return VectorStep(
            seen=self._seen(),
            rewards=torch.tensor([outcome.paid.total for outcome in outcomes], dtype=torch.float64),
            terminated=ended,
            ended=ended,
            starts=ended,
            valid=torch.ones(self.size, dtype=torch.bool),
            final=final,
        )

    def _begin(self, number: int) -> None:
        first = self._episodes[number] * self.each
        name = self.specs[number].name
        seeds = [derive(self._seed, "tuning", name, first + row) for row in range(self.each)]
        self._worlds[number].begin(seeds, self._episodes[number])
        self._episodes[number] += 1

    def _views(self) -> list[EnvView]:
        return [view for world in self._worlds for view in world.views]

    def _seen(self) -> MaskedObservation:
        views = self._views()
        return MaskedObservation(
            observe(views, SPACE, self._config), tables([self._nurture.offer(v, SPACE).available for v in views])
        )


def _world(spec: WorldSpec, reward: RewardConfig) -> GrowthMDP:
    pool = WorkerPool.here(partial(_executor, spec), lambda event: None)
    return GrowthMDP(pool, METRIC, MDPConfig(spec.epochs, rented(reward, spec)))


def _executor(spec: WorldSpec, emit: Sink) -> Executor:
    return executor_of(spec, test=False)
