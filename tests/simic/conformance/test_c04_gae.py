"""C4: advantages equal SB3's over terminations, truncations, gamma and lambda."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_oracles import naive_gae, sb3_gae
from torch import Tensor

from esper.simic.gae import gae


def _episodes(seed: int, p_terminated: float, p_truncated: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    steps, rows = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    return {
        "rewards": rng.normal(size=(steps, rows)),
        "values": rng.normal(size=(steps + 1, rows)),
        "finals": rng.normal(size=(steps, rows)),
        "terminated": rng.random((steps, rows)) < p_terminated,
        "truncated": rng.random((steps, rows)) < p_truncated,
    }


def _ours(case: dict[str, np.ndarray], gamma: float, lam: float) -> dict[str, Tensor]:
    done = case["terminated"] | case["truncated"]
    columns = {
        "rewards": case["rewards"],
        "values": case["values"][:-1],
        "next_values": np.where(done, case["finals"], case["values"][1:]),
        "discounts": np.where(case["terminated"], 0.0, gamma),
        "lambdas": np.where(done, 0.0, lam),
    }
    return {name: torch.tensor(column, dtype=torch.float32) for name, column in columns.items()}


def _theirs(case: dict[str, np.ndarray], gamma: float, lam: float) -> np.ndarray:
    ends = (case["terminated"], case["truncated"])
    return sb3_gae(case["rewards"], case["values"], case["finals"], ends, (gamma, lam))


@given(st.integers(0, 2**31), st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0, 1), st.floats(0, 1))
def test_equals_sb3_and_the_naive_sum(seed: int, p_term: float, p_trunc: float, gamma: float, lam: float) -> None:
    case = _episodes(seed, p_term, p_trunc)
    columns = _ours(case, gamma, lam)
    advantages = gae(**columns)
    # single precision, a few numbers near 1 summed in another order
    np.testing.assert_allclose(advantages, _theirs(case, gamma, lam), atol=1e-5)
    torch.testing.assert_close(advantages, naive_gae(**columns), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mutant", ["next episode's value", "truncated is terminal", "lambda not cut"])
def test_the_known_mistakes_are_caught(mutant: str) -> None:
    case = _episodes(3, 0.2, 0.3)
    columns = _ours(case, 0.9, 0.8)
    if mutant == "next episode's value":
        columns["next_values"] = torch.tensor(case["values"][1:], dtype=torch.float32)
    elif mutant == "truncated is terminal":
        columns["discounts"][torch.tensor(case["truncated"])] = 0.0
    else:
        columns["lambdas"][:] = 0.8
    assert np.abs(gae(**columns).numpy() - _theirs(case, 0.9, 0.8)).max() > 0.1
