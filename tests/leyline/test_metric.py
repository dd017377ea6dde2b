"""A metric's scale: shares of it are judged alike in any unit."""

from __future__ import annotations

import math

import pytest

from esper.leyline import GateThresholds, Metric, UsageError

PERCENT = Metric("accuracy", "%", low=0.0, high=100.0)
FRACTION = Metric("accuracy", "", low=0.0, high=1.0)
ERROR = Metric("error", "", higher_is_better=False, low=0.0, high=1.0)


def test_percent_fraction_and_error_are_as_good() -> None:
    assert PERCENT.goodness(87.3) == 87.3
    assert FRACTION.goodness(0.873) == pytest.approx(87.3) == ERROR.goodness(0.127)
    assert Metric("loss", "", higher_is_better=False).goodness(0.2) == 0.2


@pytest.mark.parametrize("ends", [(0.0, None), (None, 1.0), (1.0, 0.0), (0.0, math.inf), (0.0, math.nan)])
def test_what_is_no_scale(ends: tuple[float | None, float | None]) -> None:
    with pytest.raises(UsageError, match="has the scale"):
        Metric("m", "", low=ends[0], high=ends[1])


def test_the_least_cost_is_a_share_of_the_scale_and_0_where_there_is_none() -> None:
    least = [GateThresholds(metric=each).least_removal_cost for each in (PERCENT, FRACTION, ERROR)]
    assert least == [0.5, 0.005, 0.005]
    assert GateThresholds(metric=Metric("loss", "")).least_removal_cost == 0.0
