"""Learning a policy in the table: rows of tabulated hosts for the PPO learner, and a saved policy as a player."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from esper.bench.growtable.host import SPACE, Node, TableHost
from esper.bench.growtable.score import Player
from esper.bench.growtable.tabular import TabularWorld
from esper.bench.growtable.worlds import BLUEPRINTS
from esper.leyline import FactoredAction, UsageError
from esper.simic.collect import Collector, MaskedObservation, RolloutEnvironments, VectorStep
from esper.simic.ppo import PPOConfig, PPOLearner
from esper.simic.rewards import RewardConfig
from esper.simic.vectorized import fresh_network
from esper.tamiyo.batch import observe, tables, without_names
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import to_action
from esper.tamiyo.network import GrowthNetwork, GrowthNetworkConfig
from esper.tamiyo.recurrent import acting_macs
from esper.tolaria.rng import derive


class Sights:
    """What nodes look like to a network; every node is encoded once."""

    def __init__(self, config: GrowthNetworkConfig) -> None:
        self.config = config
        self._known: dict[Node, dict[str, Tensor]] = {}

    def of(self, nodes: Sequence[Node]) -> MaskedObservation:
        """Observation and masks of ``nodes``, one row each."""
        parts = [self._one(node) for node in nodes]
        observation = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return MaskedObservation(observation, tables([node.availability for node in nodes]))

    def _one(self, node: Node) -> dict[str, Tensor]:
        if node not in self._known:
            self._known[node] = observe([node.view], SPACE, self.config)
        return self._known[node]


class TableEnvironments:
    """``size`` rows on hosts drawn at random; implements :class:`esper.simic.collect.RolloutEnvironments`.

    A blueprint has no name in a share ``nameless`` of the episodes, so that the policy learns to tell strangers by what
    they cost, beside those that it knows.
    """

    def __init__(self, hosts: Sequence[TableHost], config: GrowthNetworkConfig, plan: LearnPlan) -> None:
        self.hosts, self.size, self.nameless = hosts, plan.rows, plan.nameless
        self.heads = growth_heads(SPACE)
        self.world = TabularWorld(plan.reward)
        self.sights = Sights(config)
        self._random = np.random.default_rng(0)
        self._hidden = torch.zeros(plan.rows, len(BLUEPRINTS), dtype=torch.bool)

    def reset(self, seed: int) -> MaskedObservation:
        """Start everywhere; ``seed`` decides which hosts come when."""
        self._random = np.random.default_rng(seed % 2**63)
        self.world.begin([self._draw(row) for row in range(self.size)])
        return self._seen()

    def step(self, actions: Tensor) -> VectorStep:
        """One epoch in every row; a row that ended starts on another host at once."""
        answers = [self.world.step(row, to_action(SPACE, chosen)) for row, chosen in enumerate(actions.tolist())]
        ended = [answer.ended for answer in answers]
        final = self._seen().observation if any(ended) else None
        for row in (row for row, over in enumerate(ended) if over):
            self.world.enter(row, self._draw(row))
        over = torch.tensor(ended)
        return VectorStep(
            seen=self._seen(),
            rewards=torch.tensor([answer.paid.total for answer in answers], dtype=torch.float64),
            terminated=over,
            ended=over,
            starts=over,
            valid=torch.ones(self.size, dtype=torch.bool),
            final=final,
        )

    def _seen(self) -> MaskedObservation:
        seen = self.sights.of(self.world.nodes)
        return MaskedObservation(without_names(seen.observation, self._hidden), seen.masks)

    def _draw(self, row: int) -> TableHost:
        self._hidden[row] = torch.from_numpy(self._random.random(len(BLUEPRINTS)) < self.nameless)
        return self.hosts[int(self._random.integers(len(self.hosts)))]


@dataclass(frozen=True, slots=True)
class LearnPlan:
    """How to learn, in the table or in real runs."""

    updates: int = 60
    rows: int = 64
    steps: int = 24
    """Of each row in a rollout."""
    seed: int = 0
    entropy: tuple[float, float] = (0.05, 0.005)
    """Entropy coefficient of the first and of the last update; it falls geometrically."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    learning_rate: float = 1e-3
    epochs: int = 3
    minibatches: int = 4
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Fields of ``GrowthNetworkConfig`` in which a fresh network is not of the usual size."""
    nameless: float = 0.5
    """Share of the table's episodes in which a blueprint has no name."""

    def __post_init__(self) -> None:
        for name in ("updates", "rows", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    def ppo(self, progress: float) -> PPOConfig:
        """Settings at ``progress`` in [0, 1)."""
        first, last = self.entropy
        return PPOConfig(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            minibatches=self.minibatches,
            entropy_coefficient=first * (last / first) ** progress,
        )


@dataclass(frozen=True, slots=True)
class Learned:
    """A network, the steps that it made and the multiply-accumulates of its own acting and learning."""

    network: GrowthNetwork
    steps: int
    macs: int


Tell = Callable[[int, float, float], None]
"""Is given an update's number, the mean return of the episodes that ended and the entropy, in nats."""


def learn(hosts: Sequence[TableHost], plan: LearnPlan, tell: Tell) -> Learned:
    """Train a fresh network on ``hosts``."""
    network = fresh_network(plan.seed, BLUEPRINTS, **plan.sizes)
    return improve(network, TableEnvironments(hosts, network.config, plan), plan, tell)


def improve(network: GrowthNetwork, environments: RolloutEnvironments, plan: LearnPlan, tell: Tell) -> Learned:
    """Train ``network`` in ``environments``, in place."""
    learner = PPOLearner(network, plan.ppo(0.0), derive(plan.seed, "minibatches"))
    collector = Collector(environments, network, plan.ppo(0.0).gamma, derive(plan.seed, "policy draws"))
    steps = plan.updates * plan.steps * environments.size
    macs = steps * acting_macs(network, collector.seen.observation)
    for update in range(plan.updates):
        progress = update / plan.updates
        learner.config = plan.ppo(progress)
        rollout, episodes = collector.collect(plan.steps)
        report = learner.update(rollout, 1.0 - 0.9 * progress)
        macs += report.update_macs
        if episodes:
            tell(update + 1, fmean(episode.episode_return for episode in episodes), report.entropy)
    return Learned(network, steps, macs)


def network_player(network: GrowthNetwork, *, greedy: bool = True, nameless: bool = False) -> Player:
    """A network as it acts in the table, under the table's masks; ``nameless``: it is told no blueprint's name."""
    sights, heads = Sights(network.config), growth_heads(SPACE)
    hidden = torch.ones(1, len(BLUEPRINTS), dtype=torch.bool)

    def begin(host: TableHost, draw: int) -> Callable[[Node], FactoredAction]:
        state, fresh = network.initial_state(1), True
        generator = torch.Generator().manual_seed(derive(draw, "policy", host.world.name, str(host.number)))

        @torch.no_grad()
        def choose(node: Node) -> FactoredAction:
            nonlocal state, fresh
            seen = sights.of([node])
            told = without_names(seen.observation, hidden) if nameless else seen.observation
            output, state = network.step(told, state, torch.tensor([fresh]))
            fresh = False
            distribution = FactoredDistribution(heads, output.logits, seen.masks)
            uniforms = torch.rand(1, len(heads), generator=generator)
            actions = distribution.mode()[0] if greedy else distribution.sample(uniforms)[0]
            return to_action(SPACE, actions[0].tolist())

        return choose

    return begin
