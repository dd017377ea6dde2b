"""Alpha schedules: exact end points, bounds, monotone, and the curves that their names promise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.kasmina.blending import check_ramp, ramp
from esper.leyline import Blend, UsageError

alphas = st.floats(0.0, 1.0)
blends = st.sampled_from(Blend)
tempos = st.integers(1, 50)


@given(start=alphas, target=alphas, blend=blends, tempo=tempos)
def test_end_points_are_exact_and_the_way_between_is_monotone(
    start: float, target: float, blend: Blend, tempo: int
) -> None:
    way = [ramp(start, target, blend, step, tempo) for step in range(tempo + 2)]

    assert way[0] == start
    assert way[tempo] == way[tempo + 1] == target
    assert way == sorted(way, reverse=target < start)


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        (Blend.LINEAR, [0.25, 0.5, 0.75]),
        (Blend.COSINE, [(1 - math.cos(math.pi * t)) / 2 for t in (0.25, 0.5, 0.75)]),
        (Blend.SIGMOID, [0.045177, 0.5, 0.954823]),
    ],
)
def test_shapes(blend: Blend, expected: list[float]) -> None:
    assert [ramp(0.0, 1.0, blend, step, 4) for step in (1, 2, 3)] == pytest.approx(expected, abs=1e-6)


@given(target=alphas, blend=blends, tempo=tempos, step=st.integers(0, 60))
def test_ramp_down_mirrors_ramp_up(target: float, blend: Blend, tempo: int, step: int) -> None:
    up = ramp(0.0, target, blend, step, tempo)
    down = ramp(target, 0.0, blend, step, tempo)
    assert up + down == pytest.approx(target)


@pytest.mark.parametrize(("target", "tempo"), [(-0.1, 3), (1.1, 3), (math.nan, 3), (0.5, 0)])
def test_ramps_that_cannot_be(target: float, tempo: int) -> None:
    with pytest.raises(UsageError):
        check_ramp(target, tempo)
