"""Gradient figures against hand-computed values; absent where there is nothing to measure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.gradients import gradient_health, gradient_ratio, smooth, tensor_norms, total_norm


def test_norms_of_each_tensor_and_of_all() -> None:
    gradients = [torch.tensor([3.0, 4.0]), None, torch.tensor([[12.0]])]
    assert tensor_norms(gradients) == [5.0, 12.0]
    assert total_norm([5.0, 12.0]) == 13.0
    assert tensor_norms([None]) == []
    assert total_norm([]) is None


def test_ratio_is_corrected_for_size() -> None:
    assert gradient_ratio(1.0, 4.0, seed_parameters=100, host_parameters=400) == 0.5
    assert gradient_ratio(100.0, 1.0, 1, 1) == 10.0


def test_a_seed_larger_than_all_that_learns_in_the_host_is_not_punished_for_it() -> None:
    assert gradient_ratio(0.2, 1.0, seed_parameters=40_000, host_parameters=100) == 0.2


@pytest.mark.parametrize(
    ("seed", "host", "seed_size", "host_size"),
    [(None, 1.0, 1, 1), (1.0, None, 1, 1), (0.0, 0.0, 1, 1), (1.0, 1.0, 0, 1)],
)
def test_ratio_is_absent_where_it_was_not_measured(
    seed: float | None, host: float | None, seed_size: int, host_size: int
) -> None:
    assert gradient_ratio(seed, host, seed_size, host_size) is None


def test_ratio_of_a_gradient_that_is_not_a_number_is_not_capped_into_one() -> None:
    ratio = gradient_ratio(math.nan, 1.0, 1, 1)
    assert ratio is not None and math.isnan(ratio)
    assert gradient_ratio(1.0, 0.0, 1, 1) == 10.0


def test_moving_average() -> None:
    assert smooth(None, 0.5) == 0.5
    assert smooth(1.0, 0.0) == pytest.approx(0.9)
    assert smooth(0.3, None) == 0.3
    assert smooth(None, None) is None
    assert smooth(math.nan, 0.2) == 0.2


@pytest.mark.parametrize(
    ("norms", "health", "vanishing", "exploding"),
    [
        ([1.0, 2.0], 1.0, False, False),
        ([1.0, 1e-8], 0.75, True, False),
        ([1.0, 101.0], 0.6, False, True),
        ([1e-8, 101.0], 0.35, True, True),
        ([math.nan, math.inf], 0.2, False, True),
        ([1e-7, 100.0], 1.0, False, False),
    ],
)
def test_health(norms: list[float], health: float, vanishing: bool, exploding: bool) -> None:
    found = gradient_health(norms)
    assert found is not None
    assert (found.health, found.has_vanishing, found.has_exploding) == (pytest.approx(health), vanishing, exploding)


def test_health_is_absent_without_gradients() -> None:
    assert gradient_health([]) is None


@given(st.lists(st.floats(0) | st.just(math.nan), min_size=1))
def test_health_stays_in_range(norms: list[float]) -> None:
    found = gradient_health(norms)
    assert found is not None and 0.0 <= found.health <= 1.0
