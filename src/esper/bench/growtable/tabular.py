"""N tabulated hosts as a reinforcement-learning problem, paid as :class:`esper.simic.mdp.GrowthMDP` pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from esper.bench.growtable.host import METRIC, Node, TableHost
from esper.bench.growtable.record import Record
from esper.bench.growtable.worlds import WorldSpec
from esper.leyline import EnvView, FactoredAction
from esper.simic.rewards import RewardBreakdown, RewardConfig, RewardInputs, RewardTracker


@dataclass(frozen=True, slots=True)
class TableStep:
    """What one row answered to one step; ``held`` says whether the table holds what was asked for."""

    view: EnvView
    taken: FactoredAction
    held: bool
    paid: RewardBreakdown
    ended: bool


@dataclass(slots=True)
class TabularWorld:
    """Rows that step together, each on a host of its own; their episodes may differ in length."""

    reward: RewardConfig = field(default_factory=RewardConfig)
    gamma: float = 1.0
    nodes: list[Node] = field(default_factory=list)
    """Where each row is."""
    trackers: list[RewardTracker] = field(default_factory=list)

    def begin(self, hosts: Sequence[TableHost]) -> list[EnvView]:
        """Start an episode on each of ``hosts``."""
        self.nodes, self.trackers = [], []
        return [self.enter(row, host) for row, host in enumerate(hosts)]

    def enter(self, row: int, host: TableHost) -> EnvView:
        """Start row ``row`` afresh; it is the next new one, or one whose episode has ended."""
        root = host.root
        start = RewardInputs.of(root.view, root.record.start_metric, None, None)
        tracker = RewardTracker(rented(self.reward, host.world), METRIC, self.gamma, host.world.epochs, start)
        self.nodes[row : row + 1], self.trackers[row : row + 1] = [root], [tracker]
        return root.view

    def step(self, row: int, action: FactoredAction) -> TableStep:
        """One epoch of one row."""
        before = self.nodes[row]
        taken, node = before.after(action)
        self.nodes[row] = node
        metric = node.record.ending.validation_metric if node.ended else node.view.metric
        assert metric is not None, "every epoch of a table was measured"
        # what the seeds are worth together was not tabulated: mode shaped gives no credit for it
        inputs = RewardInputs.of(node.view, metric, None, None)
        paid = self.trackers[row].pay(inputs, taken.op, ended=node.ended)
        return TableStep(node.view, taken, action in before.held, paid, node.ended)


def value(host: TableHost, record: Record, *, test: bool, reward: RewardConfig | None = None) -> float:
    """The objective that a sequence ends with: its metric on the validation or the test split, minus the rent."""
    ending = record.ending
    metric = ending.test_metric if test else ending.validation_metric
    return worth(host, metric, ending.kept_parameters, reward=reward)


def rented(reward: RewardConfig, world: WorldSpec) -> RewardConfig:
    """The reward at a world's own rent."""
    return replace(reward, rent=reward.rent * world.rent)


def worth(host: TableHost, metric: float, kept_parameters: int, *, reward: RewardConfig | None = None) -> float:
    """The objective of a run on a host that ends with ``metric`` and seeds of so many parameters."""
    growth = kept_parameters / host.facts.host_parameters
    config = rented(reward or RewardConfig(), host.world)
    tracker = RewardTracker(config, METRIC, 1.0, host.world.epochs, RewardInputs(0.0, 0.0))
    return tracker.objective(RewardInputs(metric, growth))
