"""Generalised advantage estimation with the discount as data."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, discounts: Tensor, lambdas: Tensor) -> Tensor:
    """Advantages ``[T, N]`` of T steps in N environments; ``advantages + values`` are the lambda-returns.

    All arguments are ``[T, N]``. What an episode's end means is data, so that there is no flag to get wrong here:
    ``next_values[t]`` is V of the state that step t led to (the last one of its own episode, never the first of the
    next); ``discounts[t]`` is gamma, and 0 where that state is terminal; ``lambdas[t]`` is lambda, and 0 where row
    t + 1 does not continue row t, so that the return there is the bootstrapped one.

    Schulman et al., "High-dimensional continuous control using generalized advantage estimation" (2016), eq. 16,
    with a per-step discount and lambda as in White, "Unifying task specification in reinforcement learning" (2017).
    """
    deltas = rewards + discounts * next_values - values
    decay = discounts * lambdas
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages
