"""Running a policy in a probe, and probes that make a known mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rl_probes import Array, ConstantReward, Flip

from esper.simic.adapter import GymPolicyAdapter


def greedy_score(adapter: GymPolicyAdapter, steps: int, seed: int = 1_000) -> float:
    """Mean return of the episodes that finish within ``steps`` steps of the likeliest actions."""
    environments = adapter.environments
    seen = environments.reset(seed)
    state = adapter.network.initial_state(environments.size)
    starts = torch.ones(environments.size, dtype=torch.bool)
    running, finished = torch.zeros(environments.size, dtype=torch.float64), []
    for _ in range(steps):
        actions, state = adapter.act(seen, state, starts)
        outcome = environments.step(actions)
        running += outcome.rewards * outcome.valid
        done = outcome.ended & outcome.valid
        finished += running[done].tolist()
        running[done] = 0
        seen, starts = outcome.seen, outcome.starts
    return float(np.mean(finished))


class TruncationAsTerminal(ConstantReward):
    """A learner that takes a time limit for an end sees this."""

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        reward, never, cut = super().advance(actions)
        return reward, cut, never


class FlipTerminal(Flip):
    """The same mistake in Flip: no bootstrap."""

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        reward, never, cut = super().advance(actions)
        return reward, cut, never


class FlipSameState(Flip):
    """A learner that bootstraps from V(s_t) instead of V(s_T) sees this."""

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        before = self.observe()
        *rest, info = super().step(actions)
        return *rest, info | {"final_obs": np.array([*before, None], dtype=object)[:-1]}  # type: ignore[return-value]
