"""However often one looks, a gain that is not there is found certain no oftener than the error rate says."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from esper.kasmina.sequential import error_rate, spent, standard_errors

Z = NormalDist().inv_cdf(0.95)


def found_certain(ask: list[list[float]], paths: np.ndarray) -> float:
    """Share of ``paths [runs, epochs, looks, n / looks]`` in which some look of some epoch finds the mean above 0 by
    as many standard errors as it is asked for; every look goes over all that its epoch has read so far."""
    hit = np.zeros(len(paths), dtype=bool)
    for epoch, of_epoch in enumerate(ask):
        for look, z in enumerate(of_epoch):
            seen = paths[:, epoch, : look + 1].reshape(len(paths), -1)
            hit |= seen.mean(axis=1) > z * seen.std(axis=1, ddof=1) / math.sqrt(seen.shape[1])
    return float(hit.mean())


def null(correlation: float, runs: int = 4000, epochs: int = 6, looks: int = 8, n: int = 200) -> np.ndarray:
    """Differences of mean 0. The same examples are read in every epoch, so that epochs go together."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((runs, 1, looks, n // looks))
    own = rng.standard_normal((runs, epochs, looks, n // looks))
    return math.sqrt(correlation) * shared + math.sqrt(1.0 - correlation) * own


@pytest.mark.parametrize("equal", [1, 6])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_error_rate_holds_over_all_looks_and_naive_looks_break_it(correlation: float, equal: int) -> None:
    paths, shares = null(correlation), [(i + 1) / 8 for i in range(8)]
    ours = [[standard_errors(Z, spent(look, equal), share) for share in shares] for look in range(1, 7)]
    naive = [[Z] * 8] * 6
    assert found_certain(ours, paths) <= 0.05
    assert found_certain(naive, paths) > 0.2
    only_between = [[standard_errors(Z, spent(look, equal)) for _ in shares] for look in range(1, 7)]
    assert found_certain(only_between, paths) > 0.05
    if correlation == 0.0:
        only_within = [[standard_errors(Z, 1.0, share) for share in shares]] * 6
        assert found_certain(only_within, paths) > 0.05


@pytest.mark.parametrize("equal", [1, 2, 6])
def test_shares_of_all_looks_sum_to_the_error_rate(equal: int) -> None:
    shares = [spent(look, equal) for look in range(1, 4000)]
    assert sum(shares) == pytest.approx(1.0, rel=1e-3) and len(set(shares[: equal + 1])) <= 2
    assert sum(error_rate(standard_errors(Z, share)) for share in shares) == pytest.approx(0.05, rel=1e-3)


def test_what_is_asked() -> None:
    assert standard_errors(Z, 0.5) == pytest.approx(1.96, abs=1e-2)
    assert standard_errors(Z, 0.5, 1.0) == pytest.approx(NormalDist().inv_cdf(1 - 0.0125))
    assert standard_errors(Z, 0.5, 0.25) == pytest.approx(2 * standard_errors(Z, 0.5, 1.0))
    assert standard_errors(0.0, 0.1, 0.5) == 0.0
    assert standard_errors(1e9, 1.0) == math.inf
