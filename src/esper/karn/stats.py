"""Means and paired differences with t intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec


class Interval(msgspec.Struct, frozen=True, omit_defaults=True):
    """A mean with its 95 % t interval; without ``low`` and ``high`` there were too few values for one."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()
    """The values themselves, where they are too few for an interval that says anything."""

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean of ``values`` with its two-sided t interval; ``None`` without values. NaNs spread to the result."""
    n = len(values)
    if n == 0:
        return None
    mean = total(values) / n
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, n)
    spread = math.sqrt(total((value - mean) * (value - mean) for value in values) / (n - 1))
    half = t_quantile(0.5 + confidence / 2, n - 1) * spread / math.sqrt(n)
    return Interval(mean, n, mean - half, mean + half)


FEW: Final = 3
"""Values from which on an interval is told: of two the t quantile is 12.7, and what it spans is often impossible."""


def described(values: Sequence[float]) -> Interval | None:
    """:func:`interval`; of fewer than :data:`FEW` values the values themselves, and no interval."""
    found = interval(values)
    if found is None or found.n >= FEW or not math.isfinite(found.mean):
        return found
    return Interval(found.mean, found.n, values=tuple(values))


def total(values: Iterable[float]) -> float:
    """Their sum, rounded once; infinite where floats have no room for it."""
    listed = list(values)
    try:
        return math.fsum(listed)
    except (OverflowError, ValueError):  # ValueError: infinities of both signs
        return sum(listed, 0.0)


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t distribution, ``0.5 < p < 1``, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while _central_mass(high, freedom) < 2 * p - 1:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _central_mass(middle, freedom) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return high


def _central_mass(t: float, freedom: int) -> float:
    """P(-t < T < t), Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        term, total = cosine, cosine if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= cosine * cosine * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total)
    term = total = 1.0
    for k in range(2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return sine * total
