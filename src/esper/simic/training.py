"""Heuristic runs: one or more fixed policies, each an arm, on the same seeds. Thin over the executor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from esper.leyline import HostEngine, Policy, RowSpec
from esper.tolaria.executor import EpisodeResult, Executor, StepReport

OnEpoch = Callable[[int, int, Sequence[StepReport]], None]
"""``(episode, epoch, one report per arm)``, called after every epoch."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Episodes ``0 .. episodes-1``; episode ``e`` of every arm starts from ``seed + e``."""

    episodes: int
    max_epochs: int
    seed: int = 0


def run_episodes(
    executor: Executor, policies: Mapping[str, Policy], plan: Plan, on_epoch: OnEpoch | None = None
) -> Iterator[tuple[list[EpisodeResult], HostEngine]]:
    """Run every arm of each episode side by side; yields its results with the engine that still holds its rows."""
    for episode in range(plan.episodes):
        specs = [
            RowSpec(
                env_id=env_id,
                episode=episode,
                seed=plan.seed + episode,
                max_epochs=plan.max_epochs,
                arm=arm,
                policy=policy.name,
            )
            for env_id, (arm, policy) in enumerate(policies.items())
        ]
        views = executor.reset(specs)
        for spec, policy in zip(specs, policies.values(), strict=True):
            policy.reset([spec])
        for epoch in range(1, plan.max_epochs + 1):
            before = time.perf_counter()
            decisions = [policy.decide([view])[0] for policy, view in zip(policies.values(), views, strict=True)]
            reports = executor.step(decisions, policy_seconds=(time.perf_counter() - before) / len(policies))
            views = [report.view for report in reports]
            if on_epoch is not None:
                on_epoch(episode, epoch, reports)
        last = [policy.decide([view])[0] for policy, view in zip(policies.values(), views, strict=True)]
        yield executor.finish(last), executor.engine
