from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from esper.karn.series import CAPACITY, Series


@given(st.lists(st.floats(), max_size=500))
def test_bounded_and_keeps_extremes_last_and_nan(values: list[float]) -> None:
    series = Series()
    for at, value in enumerate(values):
        series.add(at, value)
    finite_or_inf = [value for value in values if not math.isnan(value)]
    lows = [b.low for b in series.buckets if not math.isnan(b.low)]
    highs = [b.high for b in series.buckets if not math.isnan(b.high)]
    assert len(series.buckets) <= 2 * CAPACITY
    assert series.seen == len(values) == sum(bucket.points for bucket in series.buckets)
    assert sum(bucket.nans for bucket in series.buckets) == sum(map(math.isnan, values))
    assert (min(lows), max(highs)) == (min(finite_or_inf), max(finite_or_inf)) if finite_or_inf else not lows
    if values:
        assert repr(series.last) == repr(values[-1])


@given(st.integers(1, 1000))
def test_buckets_lie_side_by_side(points: int) -> None:
    series = Series()
    for at in range(points):
        series.add(at, 1.0)
    edges = [(b.first, b.last_at) for b in series.buckets]
    assert edges[0][0] == 0 and edges[-1][1] == points - 1
    assert all(after[0] == before[1] + 1 for before, after in zip(edges, edges[1:], strict=False))
