"""N growing hosts as a Markov decision process: an epoch is a step, and what it is paid is tracked env by env.

    begin(seeds) -> views      step(decisions) -> one StepOutcome per env, the last of an episode with its result

All envs see the same data and the same validation split and differ by their named seeds only. An episode ends after
``max_epochs`` epochs in a true terminal state: the horizon is finite and the epoch is part of the observation. Its last
step also pays for the end, when every seed that was not fossilized is taken out.

Hosts are driven by a :class:`~esper.simic.workers.WorkerPool`; reward trackers, and all that depends on more than one
env, are kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from esper.leyline import (
    ActionOutcome,
    ActionSpace,
    Decision,
    EnvCost,
    EnvSpec,
    EnvView,
    FactoredAction,
    Metric,
    UsageError,
)
from esper.simic.rewards import RewardBreakdown, RewardConfig, RewardInputs, RewardTracker
from esper.simic.workers import ResetResult, StepResult, WorkerPool
from esper.tamiyo.batch import action_space
from esper.tolaria.executor import EpisodeResult, StepReport
from esper.tolaria.nested import State, join, plain_state, split
from esper.tolaria.rng import derive


@dataclass(frozen=True, slots=True)
class MDPConfig:
    """One problem: how long an episode is, and what is paid."""

    max_epochs: int
    reward: RewardConfig = field(default_factory=RewardConfig)
    gamma: float = 1.0
    policy: str = "ppo"

    def __post_init__(self) -> None:
        if self.max_epochs < 1:
            raise UsageError(f"an episode of {self.max_epochs} epochs; at least 1 is needed")
        if not 0 <= self.gamma <= 1:
            raise UsageError(f"gamma is {self.gamma}; it must be in [0, 1]")


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one env answered to one step. ``result`` and ``tracker`` tell of the whole episode on its last step."""

    view: EnvView
    outcome: ActionOutcome
    paid: RewardBreakdown
    report: StepReport
    result: EpisodeResult | None
    tracker: RewardTracker

    @property
    def ended(self) -> bool:
        """Whether this was the episode's last step."""
        return self.result is not None


def episode_seed(run_seed: int, number: int) -> int:
    """Seed of a host that training sees; it does not depend on who plays it where."""
    return derive(run_seed, "episode", number)


def held_out_seed(run_seed: int, number: int) -> int:
    """Seed of a host that training never sees."""
    return derive(run_seed, "held-out", number)


class GrowthMDP:
    """N envs of a pool of workers, which should not look at the test split: it plays many episodes."""

    def __init__(self, pool: WorkerPool, metric: Metric, config: MDPConfig) -> None:
        self.pool, self.metric, self.config = pool, metric, config
        self.trackers: list[RewardTracker] = []
        self.views: list[EnvView] = []
        self.spent_macs = 0
        """Multiply-accumulates of all envs that have ended, static controls and acting included."""
        self._costs: list[EnvCost] | None = None
        self._curves: dict[int, tuple[float, ...]] = {}
        self._ended = True

    @property
    def space(self) -> ActionSpace:
        """What an action is here, once an episode has begun."""
        return action_space(self.views[0])

    # whoever collects without gradients must not stop the hosts from learning
    @torch.enable_grad()
    def begin(self, seeds: Sequence[int], episode: int = 0) -> list[EnvView]:
        """Start an episode in ``len(seeds)`` envs; returns their views before the first epoch."""
        if self.config.reward.control:
            self._play_controls(seeds, episode)
        begun = self._begin(seeds, range(len(seeds)), episode, "grown", self.config.policy)
        self.views = [env.view for env in begun]
        self._costs = [env.cost for env in begun] if self.config.reward.rent_on == "macs" else None
        self.trackers = [
            self._tracker(self._inputs(i, env.view, env.metric, None, env.cost), self._curves.get(seed))
            for i, (env, seed) in enumerate(zip(begun, seeds, strict=True))
        ]
        self._ended = False
        return self.views

    @torch.enable_grad()
    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepOutcome]:
        """One epoch in every env; what deciding took is per env. Raises ``UsageError`` when no episode is under way."""
        if self._ended:
            raise UsageError("no episode is under way; begin one first")
        stepped = self._stepped(decisions, policy_seconds)
        self._ended = self.pool.epoch >= self.config.max_epochs
        self.views = [env.report.view if env.result is None else env.result.view for env in stepped]
        return [self._paid(i, env) for i, env in enumerate(stepped)]

    def state(self) -> State:
        """The envs, their reward trackers and the static curves, as they are between two steps."""
        own = {
            "accounts": [tracker.to_dict() for tracker in self.trackers],
            "costs": None if self._costs is None else [asdict(replace(c, spent=dict(c.spent))) for c in self._costs],
            "curves": [[seed, list(curve)] for seed, curve in self._curves.items()],
            "ended": self._ended,
            "spent_macs": self.spent_macs,
        }
        return join({"own": plain_state(own), "executor": self.pool.state()})

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        parts = split(state, "own", "executor")
        own = parts["own"]["plain"]
        self.views = self.pool.load(parts["executor"])
        self.trackers = [self._tracker(RewardInputs.from_dict(saved["start"])) for saved in own["accounts"]]
        for tracker, saved in zip(self.trackers, own["accounts"], strict=True):
            tracker.load(saved)
        self._costs = None if own["costs"] is None else [EnvCost(**cost) for cost in own["costs"]]
        self._curves = {seed: tuple(curve) for seed, curve in own["curves"]}
        self._ended = own["ended"]
        self.spent_macs = own["spent_macs"]

    def _tracker(self, start: RewardInputs, curve: tuple[float, ...] | None = None) -> RewardTracker:
        return RewardTracker(
            config=self.config.reward,
            metric=self.metric,
            gamma=self.config.gamma,
            max_epochs=self.config.max_epochs,
            start=start,
            curve=curve,
        )

    def _begin(
        self, seeds: Sequence[int], env_ids: Sequence[int], episode: int, arm: str, policy: str
    ) -> list[ResetResult]:
        length = self.config.max_epochs
        return self.pool.begin(
            [
                EnvSpec(env_id, episode, seed, length, arm=arm, policy=policy)
                for env_id, seed in zip(env_ids, seeds, strict=True)
            ]
        )

    def _stepped(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepResult]:
        stepped = self.pool.step(decisions, policy_seconds)
        self.spent_macs += sum(env.result.total_macs for env in stepped if env.result is not None)
        return stepped

    def _inputs(self, i: int, view: EnvView, metric: float, worth: float | None, cost: EnvCost) -> RewardInputs:
        return RewardInputs.of(view, metric, worth, None if self._costs is None else (self._costs[i], cost))

    def _paid(self, i: int, stepped: StepResult) -> StepOutcome:
        report, result = stepped.report, stepped.result
        tracker, view = self.trackers[i], self.views[i]
        if result is not None:
            metric, worth = result.validation_metric, None
        else:
            # an env that went back to the state before its first epoch has no metric of its own yet
            metric = tracker.start.metric if view.metric is None else view.metric
            worth = None if report.rolled_back else self._worth(report)
        inputs = self._inputs(i, view, metric, worth, stepped.cost)
        paid = tracker.pay(inputs, report.outcome.action.op, ended=result is not None)
        return StepOutcome(view, report.outcome, paid, report, result, tracker)

    def _worth(self, report: StepReport) -> float | None:
        without = report.readout.all_off_metric
        if without is None:
            return None
        worth = report.readout.metric - without
        return worth if self.metric.higher_is_better else -worth

    def _play_controls(self, seeds: Sequence[int], episode: int) -> None:
        """Train the static hosts of seeds that were not seen yet, and keep their metric's course."""
        new = [i for i, seed in enumerate(seeds) if seed not in self._curves and seed not in seeds[:i]]
        if not new:
            return
        fresh = [seeds[i] for i in new]
        curves = [[env.metric] for env in self._begin(fresh, new, episode, "static", "static")]
        wait = [Decision(FactoredAction(), "the static control never grows")] * len(new)
        for _ in range(self.config.max_epochs):
            for curve, env in zip(curves, self._stepped(wait), strict=True):
                metric = env.report.view.metric
                curve.append(curve[0] if metric is None else metric)
        self._curves |= {seed: tuple(curve) for seed, curve in zip(fresh, curves, strict=True)}
