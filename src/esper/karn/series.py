"""Bounded histories that keep extremes, the last value, and values that are not numbers."""

from __future__ import annotations

import math

import msgspec


class Bucket(msgspec.Struct, array_like=True, gc=False):
    """Neighbouring points. ``low`` and ``high`` are NaN when every point in the bucket was NaN."""

    first: int
    """Position (epoch) of the first point."""
    last_at: int
    points: int
    low: float
    high: float
    last: float
    nans: int = 0


class Series(msgspec.Struct, array_like=True):
    """At most ``2 * CAPACITY`` buckets of equal weight; when they are full, neighbours merge and the width doubles.

    Infinities order like numbers, so they survive as extremes; NaNs are counted. A reader can say exactly how many
    points stand behind how many buckets.
    """

    width: int = 1
    """Points per bucket; the last one may still hold fewer."""
    buckets: list[Bucket] = []

    def add(self, at: int, value: float) -> None:
        """Append one point; positions must not decrease."""
        if type(value) is not float:
            value = float(value)  # an integer would come back from a stored state as another type
        buckets = self.buckets
        if self.width > 1 and buckets[-1].points < self.width:
            _grow(buckets[-1], at, value)
            return
        if len(buckets) >= _FULL:
            self.buckets = buckets = _halve(buckets)
            self.width *= 2
        buckets.append(Bucket(at, at, 1, value, value, value, 1 if value != value else 0))

    @property
    def seen(self) -> int:
        """Points there were."""
        return (len(self.buckets) - 1) * self.width + self.buckets[-1].points if self.buckets else 0

    @property
    def last(self) -> float | None:
        """The newest value, ``None`` before the first."""
        return self.buckets[-1].last if self.buckets else None

    @property
    def last_at(self) -> int | None:
        """Where the newest value is, ``None`` before the first."""
        return self.buckets[-1].last_at if self.buckets else None


CAPACITY = 32
"""Fewest buckets of a full series; the most is twice as many."""
_FULL = 2 * CAPACITY


def _grow(bucket: Bucket, at: int, value: float) -> None:
    """What :func:`_extend` does with a bucket of one point, without making one."""
    bucket.last_at = at
    bucket.points += 1
    bucket.last = value
    if value != value:
        bucket.nans += 1
    elif value < bucket.low:
        bucket.low = value
    elif value > bucket.high:
        bucket.high = value
    elif bucket.low != bucket.low:
        bucket.low = bucket.high = value


def _extend(into: Bucket, later: Bucket) -> None:
    into.last_at = later.last_at
    into.points += later.points
    into.last = later.last
    into.nans += later.nans
    if math.isnan(into.low):
        into.low, into.high = later.low, later.high
    elif not math.isnan(later.low):
        into.low, into.high = min(into.low, later.low), max(into.high, later.high)


def _halve(buckets: list[Bucket]) -> list[Bucket]:
    halved = buckets[::2]
    for into, later in zip(halved, buckets[1::2], strict=False):
        _extend(into, later)
    return halved
