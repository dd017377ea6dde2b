"""Means over hosts of several worlds: the worlds are the strata of the sample.

Worlds are chosen, hosts are drawn within them, so that what differs between worlds is no noise. Each world counts
alike, however many hosts it has:

    mean = sum(mean_w) / W        variance = sum(var_w / n_w) / W^2

with Satterthwaite's degrees of freedom (F. E. Satterthwaite, "An approximate distribution of estimates of variance
components", 1946), rounded down, since worlds may scatter differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.karn.stats import Interval, t_quantile, total


def stratified(strata: Sequence[str], values: Sequence[float]) -> Interval:
    """Mean over the means of the strata, with its 95 % t interval; without one where a stratum has one value alone.

    ``strata`` names that of each of ``values``, of which there must be some.
    """
    parts: dict[str, list[float]] = {}
    for name, value in zip(strata, values, strict=True):
        parts.setdefault(name, []).append(float(value))
    means = {name: total(part) / len(part) for name, part in parts.items()}
    mean = total(means.values()) / len(parts)
    if min(map(len, parts.values())) < 2:
        return Interval(mean, len(values))
    errors = [
        (total((value - means[name]) ** 2 for value in part) / (len(part) - 1) / len(part), len(part) - 1)
        for name, part in parts.items()
    ]
    variance = total(error for error, _ in errors)
    if variance == 0.0:
        return Interval(mean, len(values), mean, mean)
    # one stratum has all its degrees, whatever the rounding
    freedom = math.floor(variance**2 / total(error**2 / degrees for error, degrees in errors) + 1e-9)
    half = t_quantile(0.975, freedom) * math.sqrt(variance) / len(parts)
    return Interval(mean, len(values), mean - half, mean + half)
