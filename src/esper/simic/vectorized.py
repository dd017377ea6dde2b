"""PPO runs: rounds of one episode in each of N environments and one update, on the executor.

A run is one object, :class:`PPORun`, that holds everything which lives from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

import torch

from esper.kasmina import blueprints
from esper.leyline import ActionSpace, DataError, Op, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.simic.collect import Collector, MaskedObservation
from esper.simic.detectors import DetectorConfig, PolicyMonitor, RoundFigures
from esper.simic.event_writer import Hub, RolloutEventWriter
from esper.simic.growth import GrowthEnvironments, Hosts
from esper.simic.mdp import GrowthMDP
from esper.simic.ppo import PPOConfig, PPOLearner, UpdateReport
from esper.tamiyo.features import LAYOUT
from esper.tamiyo.network import GrowthNetwork, GrowthNetworkConfig
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.rng import derive, seeded


def _emit_throughput(
    hub: Hub,
    env_id: int,
    batch_idx: int,
    episodes_completed: int,
    step_time_ms: float,
    dataloader_wait_ms: float,
) -> None:
    """Say how fast environment ``env_id`` steps: its own times, measured. No rate follows from no time."""
    fps = 1000.0 / step_time_ms if step_time_ms > 0 and math.isfinite(1000.0 / step_time_ms) else None
    hub.emit(
        TelemetryEvent(
            event_type=T.ANALYTICS_SNAPSHOT,
            env_id=env_id,
            data={
                "kind": "throughput",
                "batch_idx": batch_idx,
                "episodes_completed": episodes_completed,
                "step_time_ms": step_time_ms,
                "dataloader_wait_ms": dataloader_wait_ms,
                "fps": fps,
            },
        )
    )


@dataclass(frozen=True, slots=True)
class PPOPlan:
    """How long to learn, and how."""

    rounds: int
    envs: int
    seed: int = 0
    hosts: int = 0
    """Distinct hosts that episodes start from in turn; 0 never uses one twice."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    anneal: float = 0.1
    """Share of the learning rate that is left in the last round; it falls linearly."""
    detectors: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        for name in ("rounds", "envs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.hosts < 0:
            raise UsageError(f"hosts is {self.hosts}; it must be 0 or more")
        if not 0.0 <= self.anneal <= 1.0:
            raise UsageError(f"anneal is {self.anneal}; it must be in [0, 1]")


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round: ``number`` counts from 1; means are over its episodes, in the metric's unit."""

    number: int
    episodes_completed: int
    mean_return: float
    mean_gain: float
    mean_metric: float
    mean_kept: float
    """Seeds that were fossilized, per episode."""
    update: UpdateReport
    figures: RoundFigures


def vocabulary() -> tuple[str, ...]:
    """Every registered blueprint, so that a policy can serve other tasks."""
    return blueprints.everything()


OP_PRIOR: Final = MappingProxyType({Op.ADVANCE: 1.0, Op.SET_ALPHA: -2.0, Op.PRUNE: -2.0, Op.FOSSILIZE: 2.0})
"""Logits that ops begin with, others with 0. A gate that is asked in vain costs nothing, and a seed that is pruned at
random never shows what it is worth: without this hardly one random episode in thirty keeps a seed."""


def fresh_network(seed: int, names: Sequence[str] | None = None, **sizes: Any) -> GrowthNetwork:
    """A policy that has learnt nothing but :data:`OP_PRIOR`; the same seed gives the same weights.

    Of ``names`` each has an embedding of its own; default: :func:`vocabulary`.
    """
    with seeded(derive(seed, "policy network")):
        network = GrowthNetwork(GrowthNetworkConfig.for_layout(LAYOUT, names or vocabulary(), **sizes))
    with torch.no_grad():
        for op, logit in OP_PRIOR.items():
            network.op_out.bias[op] = logit
    return network


def saved_network(state: Mapping[str, Any]) -> GrowthNetwork:
    """A network of the sizes of that in a saved :class:`PPORun`, with weights still to be loaded.

    Raises ``DataError`` where the saved weights are of other sizes.
    """
    sizes = GrowthNetworkConfig.from_dict(state["plain"]["network"])
    own = "learner/network."
    shapes = {name.removeprefix(own): tuple(each.shape) for name, each in state["tensors"].items() if own in name}
    if wrong := sizes.unlike(shapes):
        raise DataError(f"the saved network's weights do not fit its sizes: {wrong}")
    if wrong := sizes.misfit(LAYOUT):
        raise DataError(f"the saved network was {wrong}")
    return GrowthNetwork(sizes)


class PPORun:
    """An MDP, a policy that acts in it and learns, and what watches both."""

    def __init__(self, mdp: GrowthMDP, space: ActionSpace, network: GrowthNetwork, plan: PPOPlan, hub: Hub) -> None:
        if mdp.config.gamma != plan.ppo.gamma:
            raise UsageError(f"rewards telescope under gamma {mdp.config.gamma}, the learner has {plan.ppo.gamma}")
        self.plan, self.hub = plan, hub
        self.event_writer = RolloutEventWriter(hub)
        self.watch = PolicyMonitor(plan.detectors)
        hosts = Hosts(plan.envs, plan.seed, plan.hosts)
        self.environments = GrowthEnvironments(mdp, space, network, hosts, self.event_writer)
        self.learner = PPOLearner(network, plan.ppo, derive(plan.seed, "minibatches"))
        self.network = network
        self.rounds_done = 0
        self.episodes_completed = 0
        self.earlier_macs = 0
        """Multiply-accumulates of everything that made the network that it begins with."""
        self._update_macs = 0
        self.on_boundary: Callable[[int], None] | None = None
        """Called with :attr:`step` wherever the run can be saved: between two steps, and after an update."""
        self._collector: Collector | None = None
        self._playing = False
        """Whether the round's episodes are under way."""

    @property
    def step(self) -> int:
        """Steps of all envs done so far."""
        mdp = self.environments.mdp
        return self.rounds_done * mdp.config.max_epochs + (mdp.pool.epoch if self._playing else 0)

    @property
    def training_macs(self) -> int:
        """Multiply-accumulates so far: of finished episodes and their controls, of acting in them, and of learning."""
        return self.environments.mdp.spent_macs + self._update_macs

    def run(self, on_round: Callable[[RoundReport], None] | None = None) -> list[RoundReport]:
        """Play and learn from the present round to the last."""
        reports = []
        while self.rounds_done < self.plan.rounds:
            report = self.play_round()
            reports.append(report)
            if on_round is not None:
                on_round(report)
        return reports

    def play_round(self) -> RoundReport:
        """One episode in every environment, one update, and what there is to say about them."""
        collector = self._collector if self._playing and self._collector is not None else self._begin()
        rollout, _ = collector.collect(self.environments.mdp.config.max_epochs)
        finished = list(self.event_writer.finished)
        progress = self.rounds_done / self.plan.rounds
        update = self.learner.update(rollout, 1.0 - (1.0 - self.plan.anneal) * progress)
        self._update_macs += update.update_macs
        self._playing = False
        self.rounds_done += 1
        self.episodes_completed += len(finished)
        figures = self.event_writer.end_round()
        for env_id, (step_ms, wait_ms) in self.event_writer.step_times().items():
            _emit_throughput(self.hub, env_id, self.rounds_done, self.episodes_completed, step_ms, wait_ms)
        report = RoundReport(
            number=self.rounds_done,
            episodes_completed=self.episodes_completed,
            mean_return=fmean(outcome.tracker.paid for outcome in finished),
            mean_gain=fmean(figures.gains),
            mean_metric=fmean(outcome.tracker.last.metric for outcome in finished),
            mean_kept=fmean(float(sum(outcome.view.fossilized.values())) for outcome in finished),
            update=update,
            figures=figures,
        )
        self._tell(report)
        self._boundary()
        return report

    def least(self) -> dict[str, int]:
        """No setting makes it longer or shorter."""
        return {}

    def remarks(self) -> Sequence[str]:
        """Nothing keeps a resume from being exact."""
        return ()

    def state(self) -> State:
        """All it takes to go on bit for bit, where ``on_boundary`` is called."""
        if self._collector is None:
            raise RuntimeError("a run that has not begun has no state yet")
        own = {
            "rounds_done": self.rounds_done,
            "episodes": self.episodes_completed,
            "playing": self._playing,
            "earlier_macs": self.earlier_macs,
            "update_macs": self._update_macs,
        }
        return join(
            {
                "own": plain_state(own),
                "network": plain_state(self.network.config.to_dict()),
                "learner": self.learner.state(),
                "environments": self.environments.state(),
                "collector": {"tensors": self._collector.checkpoint(), "plain": None},
                "scribe": self.event_writer.state(),
                "watch": plain_state(self.watch.state()),
            }
        )

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, into a fresh run with a network of the same sizes (see :func:`saved_network`)."""
        parts = split(state)
        own = parts["own"]["plain"]
        self.rounds_done, self.episodes_completed = own["rounds_done"], own["episodes"]
        self._playing = own["playing"]
        self.earlier_macs, self._update_macs = own["earlier_macs"], own["update_macs"]
        self.learner.load(parts["learner"])
        self.event_writer.load(parts["scribe"])
        self.watch.load(parts["watch"]["plain"])
        self._collector = self._collector_of(self.environments.load(parts["environments"]))
        self._collector.restore(parts["collector"]["tensors"])

    def _begin(self) -> Collector:
        """Start the round's episodes. The collector's memory and random stream live on."""
        environments = self.environments
        if self._collector is None:
            environments.episode = self.rounds_done
            self._collector = self._collector_of(None)
        else:
            self._collector.seen = environments.begin(self.rounds_done)
        self._playing = True
        return self._collector

    def _collector_of(self, seen: MaskedObservation | None) -> Collector:
        seed = derive(self.plan.seed, "policy draws")
        collector = Collector(self.environments, self.network, self.plan.ppo.gamma, seed, seen=seen)
        collector.on_step = self._boundary
        return collector

    def _boundary(self) -> None:
        if self.on_boundary is not None:
            self.on_boundary(self.step)

    def _tell(self, report: RoundReport) -> None:
        data = report.update.payload() | {
            "round": report.number,
            "episodes_completed": report.episodes_completed,
            "mean_episode_return": report.mean_return,
            "mean_objective_gain": report.mean_gain,
            "acting_macs": self.environments.acting_macs * report.update.steps,
        }
        self.hub.emit(TelemetryEvent(event_type=T.PPO_UPDATE_COMPLETED, episode=report.number, data=data))
        for finding in self.watch.look(report.update, report.figures):
            self.hub.emit(finding.event(report.number))
