"""Intervals over hosts of several worlds, against a slow reference, and what is wrong of the plain one."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from esper.bench.growtable.score import HostKey, HostResult, ahead
from esper.bench.growtable.strata import stratified
from esper.karn.stats import Interval, interval

SCATTERED = {"a": [1.0, 4.0, 2.5, 7.0, 3.0], "b": [30.0, 31.0, 30.5], "c": [-9.0, -20.0, -3.0, -14.0]}
QUANTILES = {2: 4.302653, 3: 3.182446}
"""Student's t at 97.5 %, of a printed table."""


def sample(worlds: dict[str, list[float]]) -> tuple[list[str], list[float]]:
    return [name for name, part in worlds.items() for _ in part], [value for part in worlds.values() for value in part]


def slowly(worlds: dict[str, list[float]]) -> tuple[float, float, float]:
    """Mean, standard error and degrees of freedom, as the books have them."""
    each = [(statistics.mean(part), statistics.variance(part) / len(part), len(part)) for part in worlds.values()]
    mean = sum(m for m, _, _ in each) / len(each)
    error = (sum(v for _, v, _ in each) / len(each) ** 2) ** 0.5
    return mean, error, sum(v for _, v, _ in each) ** 2 / sum(v**2 / (n - 1) for _, v, n in each)


def test_it_is_the_slow_reference() -> None:
    mean, error, freedom = slowly(SCATTERED)
    found = stratified(*sample(SCATTERED))
    assert 3 < freedom < 4, "rounded down"
    assert found.mean == pytest.approx(mean) and found.n == 12
    assert found.half == pytest.approx(QUANTILES[3] * error, rel=1e-6)
    assert found.low == pytest.approx(mean - QUANTILES[3] * error, rel=1e-6)


def test_of_one_world_it_is_the_plain_interval() -> None:
    for values in ([1.0, 4.0, 2.5, 7.0], [0.1, 0.2, 0.30000001]):
        plain, found = interval(values), stratified(["a"] * len(values), values)
        assert plain is not None and plain.low is not None
        assert (found.mean, found.low) == (pytest.approx(plain.mean), pytest.approx(plain.low))


def test_degrees_are_those_of_the_world_that_scatters() -> None:
    found = stratified(["a"] * 9 + ["b"] * 3, [2.0] * 9 + [0.0, 1.0, 2.0])
    # of all hosts less the worlds they would be ten, and the interval half as wide
    assert found.mean == 1.5 and found.half == pytest.approx(QUANTILES[2] * (1 / 3) ** 0.5 / 2, rel=1e-6)


def test_what_does_not_scatter_within_a_world_has_no_width_and_one_host_says_nothing() -> None:
    assert stratified(["a", "a", "b", "b"], [1.0, 1.0, 3.0, 3.0]) == Interval(2.0, 4, 2.0, 2.0)
    assert stratified(["a", "a", "b"], [1.0, 2.0, 3.5]) == Interval(2.5, 3)


def covered(of: str) -> float:
    """Share of samples of three worlds, far apart and of unlike scatter, whose interval holds the mean."""
    random, held = np.random.RandomState(0), 0
    for _ in range(300):
        worlds = {str(w): (10.0 * w + (1 + w) * random.standard_normal(5)).tolist() for w in range(3)}
        names, values = sample(worlds)
        found = stratified(names, values) if of == "strata" else interval(values)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 10.0 <= found.high
    return held / 300


def test_nineteen_of_twenty_intervals_hold_the_mean_and_of_plain_ones_all() -> None:
    assert 0.93 <= covered("strata") <= 0.98
    assert covered("plain") == 1.0, "what differs between worlds is taken for noise"


def test_differences_are_paired_by_host() -> None:
    mine = {HostKey(world, n): HostResult(50.0 * (world == "b") + n, 0.0) for world in "ab" for n in range(3)}
    theirs = {key: HostResult(found.objective - 1.0 - (key.world == "b"), 0.0) for key, found in mine.items()}
    assert ahead(mine, theirs) == Interval(1.5, 6, 1.5, 1.5)
