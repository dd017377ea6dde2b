"""Slow and obvious references, and other people's implementations, to compare ours with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.distributions import MaskableMultiCategoricalDistribution
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

Array = npt.NDArray[Any]


def naive_gae(rewards: Tensor, values: Tensor, next_values: Tensor, discounts: Tensor, lambdas: Tensor) -> Tensor:
    """Every advantage as its own sum: A_t = sum_k (prod_{j<k} discount_j lambda_j) delta_{t+k}. All ``[T, N]``."""
    steps, rows = rewards.shape
    advantages = torch.zeros_like(rewards)
    for row in range(rows):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                delta = rewards[k, row] + discounts[k, row] * next_values[k, row] - values[k, row]
                advantages[t, row] += weight * delta
                weight *= float(discounts[k, row] * lambdas[k, row])
    return advantages


def sb3_gae(
    rewards: Array, values: Array, final_values: Array, ends: tuple[Array, Array], factors: tuple[float, float]
) -> Array:
    """Advantages of SB3's ``RolloutBuffer``, which handles a time limit by adding gamma V(s_T) to the reward.

    ``values`` is ``[T + 1, N]``, ``ends`` are (terminated, truncated), ``factors`` are (gamma, lambda).
    """
    (terminated, truncated), (gamma, lam) = ends, factors
    steps, rows = rewards.shape
    done = terminated | truncated
    buffer = RolloutBuffer(
        steps, gym.spaces.Discrete(2), gym.spaces.Discrete(2), device="cpu", gamma=gamma, gae_lambda=lam, n_envs=rows
    )
    started = np.ones(rows)
    for t in range(steps):
        bootstrapped = rewards[t] + gamma * final_values[t] * (truncated[t] & ~terminated[t])
        zeros = np.zeros((rows, 1))
        buffer.add(zeros, zeros, bootstrapped, started, torch.as_tensor(values[t]), torch.zeros(rows))
        started = done[t]
    buffer.compute_returns_and_advantage(torch.as_tensor(values[steps]), done[-1])
    return buffer.advantages


def sb3_masked(logits: Tensor, masks: Tensor, sizes: list[int]) -> MaskableMultiCategoricalDistribution:
    """sb3-contrib's masked factored distribution. ``logits`` and ``masks`` are ``[B, sum(sizes)]``."""
    distribution = MaskableMultiCategoricalDistribution(sizes).proba_distribution(logits)
    distribution.apply_masking(masks)
    return distribution


def weights_digest(module: torch.nn.Module) -> str:
    """sha256 over every parameter and buffer, in name order."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
