"""What the schema is made of: bases, figures with their age, bounded curves, and numbers as they travel."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import msgspec

EXACT: Final = 2**53
"""Largest integer up to which JavaScript tells every integer from its neighbours."""

NonFinite = Literal["NaN", "Infinity", "-Infinity"]
Number = float | NonFinite
Level = Literal["ok", "watch", "bad", "critical"]


class Part(msgspec.Struct, omit_defaults=True, frozen=True):
    """Base of everything in a snapshot: what was not measured is left out.

    Folds (:mod:`esper.karn.state`) hold parts and put others in their place, so a snapshot never changes under its
    readers.
    """


class Shared(msgspec.Struct, omit_defaults=True):
    """Base of what a fold and the view of it have in common; a view is made anew each time."""


class Figure(Part, kw_only=True, frozen=True):
    """A measured value. Without ``epoch`` and ``time`` it is of unknown age."""

    value: bool | int | float | NonFinite
    epoch: int | None = None
    time: float | None = None
    stale: bool = False
    """Measured more than two of the environment's epochs ago."""


class Curve(Part, kw_only=True, frozen=True):
    """A bounded history. ``low`` and ``high`` are the extremes of each bucket; ``nans`` counts its NaNs."""

    at: list[int]
    low: list[Number]
    high: list[Number]
    last: list[Number]
    nans: list[int]
    seen: int
    """Points that the buckets stand for."""


class Factor(Part, kw_only=True, frozen=True):
    """One part of an anomaly score."""

    name: str
    text: str
    measured: Number
    threshold: float
    weight: float
    level: float
    unit: str = ""


def number(value: float) -> Number:
    """A float as it travels."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def travelling(value: bool | int | float) -> bool | int | float | NonFinite:
    """A measured value as it travels; a count that a browser would round is a float from the start."""
    if isinstance(value, float):
        return number(value)
    return value if -EXACT <= value <= EXACT else float(value)


def wire_safe(value: Any) -> Any:
    """Plain data with every non-finite float by name, and every integer that a browser would round in digits."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return value if -EXACT <= value <= EXACT else str(value)
    if isinstance(value, dict):
        return {str(key): wire_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire_safe(item) for item in value]
    return value
