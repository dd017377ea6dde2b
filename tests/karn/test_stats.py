from __future__ import annotations

import math

import pytest

from esper.karn.stats import interval, t_quantile


@pytest.mark.parametrize(
    ("p", "freedom", "expected"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 9, 2.262),
        (0.95, 10, 1.812),
        (0.975, 120, 1.980),
    ],
)
def test_t_quantile_against_printed_tables(p: float, freedom: int, expected: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(expected, abs=5e-4)


def test_interval() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


def test_too_few_values_have_no_interval() -> None:
    assert interval([]) is None
    one = interval([4.0])
    assert one is not None and one.half is None


def test_a_nan_spreads() -> None:
    found = interval([1.0, math.nan])
    assert found is not None and math.isnan(found.mean) and found.half is None
