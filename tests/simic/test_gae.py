"""Reductions and hand-made cases of advantages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.simic.gae import gae


def _case(seed: int, steps: int = 6, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, steps, rows, generator=draw)
    return rewards, values, torch.cat([values[1:], torch.randn(1, rows, generator=draw)])


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_one_is_the_discounted_sum_of_rewards(seed: int, gamma: float) -> None:
    rewards, values, next_values = _case(seed)
    full = torch.full_like(rewards, 1.0)
    advantages = gae(rewards, values, next_values, gamma * full, full)
    weights = gamma ** torch.arange(len(rewards))[:, None]
    monte_carlo = (weights * rewards).sum(0) + gamma ** len(rewards) * next_values[-1]
    # six single-precision terms, summed in another order
    torch.testing.assert_close(advantages[0] + values[0], monte_carlo, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_lambda_zero_is_the_one_step_error(seed: int, gamma: float) -> None:
    rewards, values, next_values = _case(seed)
    discounts = torch.full_like(rewards, gamma)
    advantages = gae(rewards, values, next_values, discounts, torch.zeros_like(rewards))
    torch.testing.assert_close(advantages, rewards + gamma * next_values - values)


@given(st.integers(0, 10_000), st.integers(0, 4))
def test_nothing_flows_back_over_a_cut(seed: int, cut: int) -> None:
    rewards, values, next_values = _case(seed)
    full = torch.full_like(rewards, 0.9)
    lambdas = full.clone()
    lambdas[cut] = 0
    before = gae(rewards, values, next_values, full, lambdas)
    rewards[cut + 1 :] += 100
    after = gae(rewards, values, next_values, full, lambdas)
    torch.testing.assert_close(before[: cut + 1], after[: cut + 1])
    assert (before[cut + 1 :] != after[cut + 1 :]).all()


def test_a_truncation_in_the_middle_bootstraps_from_its_own_last_state() -> None:
    # reward 1, V(s_T) 10.5 with gamma 20/21 is worth 11; the next episode's value of 1000 must not be used
    ones = torch.ones(2, 1)
    advantages = gae(
        rewards=ones,
        values=torch.tensor([[0.0], [1000.0]]),
        next_values=torch.tensor([[10.5], [0.0]]),
        discounts=20 / 21 * ones,
        lambdas=torch.tensor([[0.0], [0.95]]),
    )
    assert advantages[0].item() == pytest.approx(11.0, rel=1e-5), "20/21 is rounded to single precision"


def test_a_terminal_state_is_worth_nothing() -> None:
    ones = torch.ones(1, 1)
    assert gae(ones, 0 * ones, 1000 * ones, 0 * ones, ones).item() == 1.0
