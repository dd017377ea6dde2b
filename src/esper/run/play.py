"""The one episode loop: reset, decide, step, finish; and the runs of fixed policies that are made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from esper.leyline import DataError, Decision, EnvSpec, EnvView, HostEngine, Policy
from esper.tolaria.executor import EpisodeResult, Executor, StepReport
from esper.tolaria.nested import State, join, plain_state, split

OnEpoch = Callable[[int, int, Sequence[StepReport]], None]
"""``(episode, epoch, one report per arm)``, called after every epoch."""


@dataclass(frozen=True, slots=True)
class EpisodeStep:
    """One pass of the loop: what was decided, and what came of it, one per env."""

    decisions: Sequence[Decision]
    reports: Sequence[StepReport]


class Episode:
    """An episode of an executor's envs, from where it stands. ``views`` is what the next decisions are made on."""

    def __init__(self, executor: Executor, views: Sequence[EnvView] | None = None) -> None:
        """Of envs that were begun or loaded before; ``views`` are looked up where they are not given."""
        self.executor = executor
        self.views = executor.engine.views(executor.envs) if views is None else list(views)

    @classmethod
    def begin(cls, executor: Executor, specs: Sequence[EnvSpec], policy: Policy | None = None) -> Self:
        """Fresh envs, and a policy that remembers nothing."""
        views = executor.reset(specs)
        if policy is not None:
            policy.reset(specs)
        return cls(executor, views)

    @property
    def over(self) -> bool:
        """Whether all epochs are done."""
        return self.executor.epoch >= self.views[0].max_epochs

    def look(self) -> None:
        """Look again at envs that were changed from outside."""
        self.views = self.executor.engine.views(self.executor.envs)

    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepReport]:
        """One epoch of every env; ``policy_seconds`` is what deciding took, per env."""
        reports = self.executor.step(decisions, policy_seconds)
        self.views = [report.view for report in reports]
        return reports

    def epochs(
        self, policy: Policy, *, until: int | None = None, before: Callable[[], None] | None = None
    ) -> Iterator[EpisodeStep]:
        """Let ``policy`` decide, epoch by epoch, to the end or until so many are done; ``before`` is called before
        each.
        """
        while not self.over and (until is None or self.executor.epoch < until):
            if before is not None:
                before()
            began = time.perf_counter()
            decisions = policy.decide(self.views)
            seconds = (time.perf_counter() - began) / len(self.views)
            yield EpisodeStep(decisions, self.step(decisions, seconds))

    def finish(self, policy: Policy | None = None) -> list[EpisodeResult]:
        """End it, with a last word from ``policy`` where there is one."""
        return self.executor.finish(None if policy is None else policy.decide(self.views))


class SideBySide:
    """Several policies as one: each decides for the env that has its place."""

    name = "side by side"

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = list(policies)

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """One env for each."""
        for spec, policy in zip(specs, self.policies, strict=True):
            policy.reset([spec])

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """One decision of each."""
        return [policy.decide([view])[0] for policy, view in zip(self.policies, views, strict=True)]


def arm_specs(policies: Mapping[str, Policy], episode: int, seed: int, max_epochs: int) -> list[EnvSpec]:
    """An env for every arm, all of the same seed."""
    return [
        EnvSpec(env_id, episode, seed, max_epochs, arm=arm, policy=policy.name)
        for env_id, (arm, policy) in enumerate(policies.items())
    ]


def play_seeds(
    executor: Executor, policies: Mapping[str, Policy], seeds: Sequence[int], max_epochs: int
) -> Iterator[list[EpisodeResult]]:
    """One episode per seed, every policy an env of it; yields one result per policy, in their order.

    After the last epoch each policy is asked for a last word.
    """
    everyone = SideBySide(list(policies.values()))
    for number, seed in enumerate(seeds):
        episode = Episode.begin(executor, arm_specs(policies, number, seed, max_epochs), everyone)
        for _ in episode.epochs(everyone):
            pass
        yield episode.finish(everyone)


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """Episodes ``0 .. episodes-1``; episode ``e`` of every arm starts from ``seed + e``."""

    episodes: int
    max_epochs: int
    seed: int = 0


@runtime_checkable
class Saveable(Protocol):
    """A policy that can be put back where it was. One that cannot begins its memory anew after a resume."""

    def state(self) -> dict[str, Any]:
        """What it remembers of the episode, JSON-able."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""


class Episodes:
    """Every arm of each episode side by side; iterating runs them from where they stand.

    Between two epochs, where ``on_boundary`` is called with :attr:`step`, they can be saved and loaded.
    """

    def __init__(
        self, executor: Executor, policies: Mapping[str, Policy], plan: EpisodePlan, on_epoch: OnEpoch | None = None
    ) -> None:
        self.executor, self.policies, self.plan = executor, dict(policies), plan
        self.episode = 0
        self.best: float | None = None
        """Best validation metric of the first arm so far..."""
        self.best_episode: int | None = None
        """...and its episode."""
        self.on_boundary: Callable[[int], None] | None = None
        self._on_epoch = on_epoch
        self._everyone = SideBySide(list(self.policies.values()))
        self._under_way: Episode | None = None
        """``None`` while no episode is under way."""

    @property
    def step(self) -> int:
        """Epochs done in all."""
        return self.episode * self.plan.max_epochs + (0 if self._under_way is None else self.executor.epoch)

    def least(self) -> dict[str, int]:
        """How few episodes there may be after all: none that was begun is taken back."""
        return {"episodes": self.episode + 1}

    def remarks(self) -> list[str]:
        """What keeps a resume from being exact: policies that cannot be saved."""
        forgetful = [arm for arm, policy in self.policies.items() if not isinstance(policy, Saveable)]
        return [f"policy of arm {arm}: it cannot be saved, and begins anew" for arm in forgetful]

    def __iter__(self) -> Iterator[tuple[list[EpisodeResult], HostEngine]]:
        """Each episode's results with the engine that still holds its envs."""
        while self.episode < self.plan.episodes:
            if self._under_way is None:
                self._under_way = Episode.begin(self.executor, self._specs(), self._everyone)
            for epoch in self._under_way.epochs(self._everyone):
                if self._on_epoch is not None:
                    self._on_epoch(self.episode, self.executor.epoch, epoch.reports)
                if self.on_boundary is not None:
                    self.on_boundary(self.step)
            results = self._under_way.finish(self._everyone)
            self._compare(results[0])
            self.episode, self._under_way = self.episode + 1, None
            yield results, self.executor.engine

    def state(self) -> State:
        """All it takes to go on bit for bit, while an episode is under way."""
        own = {
            "episode": self.episode,
            "best": self.best,
            "best_episode": self.best_episode,
            "policies": {
                arm: policy.state() if isinstance(policy, Saveable) else None for arm, policy in self.policies.items()
            },
        }
        return join({"own": plain_state(own), "executor": self.executor.state()})

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`. Raises ``DataError`` where the arms are others."""
        parts = split(state, "own", "executor")
        own = parts["own"]["plain"]
        if list(own["policies"]) != list(self.policies):
            raise DataError(
                f"the saved arms are {', '.join(own['policies'])}; here they are {', '.join(self.policies)}"
            )
        self._under_way = Episode(self.executor, self.executor.load(parts["executor"]))
        self.episode, self.best, self.best_episode = own["episode"], own["best"], own["best_episode"]
        for spec, (arm, policy) in zip(self._specs(), self.policies.items(), strict=True):
            saved = own["policies"][arm]
            if saved is not None and isinstance(policy, Saveable):
                policy.load(saved)
            else:
                policy.reset([spec])

    def _specs(self) -> list[EnvSpec]:
        return arm_specs(self.policies, self.episode, self.plan.seed + self.episode, self.plan.max_epochs)

    def beats(self, first: EpisodeResult) -> bool:
        """Whether the first arm's result is the best so far."""
        sign = 1.0 if self.executor.metric.higher_is_better else -1.0
        return self.best is None or sign * first.validation_metric > sign * self.best

    def _compare(self, first: EpisodeResult) -> None:
        if self.beats(first):
            self.best, self.best_episode = first.validation_metric, self.episode


def run_episodes(
    executor: Executor, policies: Mapping[str, Policy], plan: EpisodePlan, on_epoch: OnEpoch | None = None
) -> Iterator[tuple[list[EpisodeResult], HostEngine]]:
    """Run every arm of each episode side by side; yields its results with the engine that still holds its envs."""
    yield from Episodes(executor, policies, plan, on_epoch)
