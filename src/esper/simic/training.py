"""Heuristic runs: one or more fixed policies, each an arm, on the same seeds. Thin over the executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from esper.leyline import DataError, Decision, HostEngine, Policy, RowSpec, RowView
from esper.tolaria.executor import EpisodeResult, Executor, StepReport
from esper.tolaria.nested import State, join, plain_state, split

OnEpoch = Callable[[int, int, Sequence[StepReport]], None]
"""``(episode, epoch, one report per arm)``, called after every epoch."""


@dataclass(frozen=True, slots=True)
class Plan:
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
        self, executor: Executor, policies: Mapping[str, Policy], plan: Plan, on_epoch: OnEpoch | None = None
    ) -> None:
        self.executor, self.policies, self.plan = executor, dict(policies), plan
        self.episode = 0
        self.best: float | None = None
        """Best validation metric of the first arm so far..."""
        self.best_episode: int | None = None
        """...and its episode."""
        self.on_boundary: Callable[[int], None] | None = None
        self._on_epoch = on_epoch
        self._views: list[RowView] | None = None
        """``None`` while no episode is under way."""

    @property
    def step(self) -> int:
        """Epochs done in all."""
        return self.episode * self.plan.max_epochs + (0 if self._views is None else self.executor.epoch)

    def least(self) -> dict[str, int]:
        """How few episodes there may be after all: none that was begun is taken back."""
        return {"episodes": self.episode + 1}

    @property
    def forgetful(self) -> list[str]:
        """Arms whose policy cannot be saved."""
        return [arm for arm, policy in self.policies.items() if not isinstance(policy, Saveable)]

    def __iter__(self) -> Iterator[tuple[list[EpisodeResult], HostEngine]]:
        """Each episode's results with the engine that still holds its rows."""
        while self.episode < self.plan.episodes:
            views = self._begin() if self._views is None else self._views
            while self.executor.epoch < self.plan.max_epochs:
                before = time.perf_counter()
                decisions = self._decide(views)
                seconds = (time.perf_counter() - before) / len(self.policies)
                reports = self.executor.step(decisions, policy_seconds=seconds)
                views = self._views = [report.view for report in reports]
                if self._on_epoch is not None:
                    self._on_epoch(self.episode, self.executor.epoch, reports)
                if self.on_boundary is not None:
                    self.on_boundary(self.step)
            results = self.executor.finish(self._decide(views))
            self._compare(results[0])
            self.episode, self._views = self.episode + 1, None
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
        self._views = self.executor.load(parts["executor"])
        self.episode, self.best, self.best_episode = own["episode"], own["best"], own["best_episode"]
        for spec, (arm, policy) in zip(self._specs(), self.policies.items(), strict=True):
            saved = own["policies"][arm]
            if saved is not None and isinstance(policy, Saveable):
                policy.load(saved)
            else:
                policy.reset([spec])

    def _begin(self) -> list[RowView]:
        specs = self._specs()
        views = self.executor.reset(specs)
        for spec, policy in zip(specs, self.policies.values(), strict=True):
            policy.reset([spec])
        return views

    def _specs(self) -> list[RowSpec]:
        return [
            RowSpec(
                env_id=env_id,
                episode=self.episode,
                seed=self.plan.seed + self.episode,
                max_epochs=self.plan.max_epochs,
                arm=arm,
                policy=policy.name,
            )
            for env_id, (arm, policy) in enumerate(self.policies.items())
        ]

    def _decide(self, views: Sequence[RowView]) -> list[Decision]:
        return [policy.decide([view])[0] for policy, view in zip(self.policies.values(), views, strict=True)]

    def _compare(self, first: EpisodeResult) -> None:
        sign = 1.0 if self.executor.metric.higher_is_better else -1.0
        if self.best is None or sign * first.validation_metric > sign * self.best:
            self.best, self.best_episode = first.validation_metric, self.episode


def run_episodes(
    executor: Executor, policies: Mapping[str, Policy], plan: Plan, on_epoch: OnEpoch | None = None
) -> Iterator[tuple[list[EpisodeResult], HostEngine]]:
    """Run every arm of each episode side by side; yields its results with the engine that still holds its rows."""
    yield from Episodes(executor, policies, plan, on_epoch)
