"""Running statistics against numpy over everything that was seen."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo.normalise import RunningMoments, RunningNorm


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_batches_add_up_to_the_whole(sizes: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    batches = [5 + 3 * torch.randn(size, 2, generator=draw) for size in sizes]
    moments = RunningMoments(2)
    for batch in batches:
        moments.observe(batch)
    everything = torch.cat(batches).double().numpy()
    if len(everything):
        np.testing.assert_allclose(moments.mean, everything.mean(0), atol=1e-9)
        np.testing.assert_allclose(moments.variance, everything.var(0), atol=1e-9)
    assert moments.count == len(everything)


def test_a_horizon_forgets() -> None:
    moments = RunningMoments(1, horizon=10)
    for level in (0.0, 1.0):
        for _ in range(20):
            moments.observe(torch.full((10, 1), level))
    assert moments.count == 10
    assert moments.mean.item() > 0.999


def test_norm_is_the_identity_until_it_sees_data() -> None:
    norm = RunningNorm(2)
    x = 100 * torch.randn(4, 2)
    assert norm(x) is x
    norm.observe(x)
    assert (norm(x).mean(0).abs() < 1e-5).all()
    assert norm(torch.full((1, 2), 1e9)).tolist() == [[10.0, 10.0]]


def test_reading_does_not_move_it() -> None:
    norm = RunningNorm(1)
    norm.observe(torch.randn(9, 1))
    before = {name: buffer.clone() for name, buffer in norm.state_dict().items()}
    norm(torch.randn(9, 1))
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.state_dict().items())


def test_a_column_that_never_changed_stays_finite() -> None:
    norm = RunningNorm(1)
    norm.observe(torch.ones(9, 1))
    assert norm(torch.tensor([[1.0], [2.0]])).tolist() == [[0.0], [10.0]]
