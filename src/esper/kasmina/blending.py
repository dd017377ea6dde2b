"""Alpha schedules: the shapes along which a seed is blended in or out."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from esper.leyline import Blend, UsageError

SIGMOID_STEEPNESS: Final = 12.0
"""Slope parameter of the sigmoid ramp before it is stretched to reach its end points."""


def _cosine(share: float) -> float:
    return 0.5 - 0.5 * math.cos(math.pi * share)


def _sigmoid(share: float) -> float:
    """A logistic curve ends at 0.0025 and 0.9975; stretched, it ends at 0 and 1."""
    low = 1.0 / (1.0 + math.exp(0.5 * SIGMOID_STEEPNESS))
    raw = 1.0 / (1.0 + math.exp(-SIGMOID_STEEPNESS * (share - 0.5)))
    return (raw - low) / (1.0 - 2.0 * low)


_SHAPES: Final[MappingProxyType[Blend, Callable[[float], float]]] = MappingProxyType(
    {Blend.LINEAR: lambda share: share, Blend.COSINE: _cosine, Blend.SIGMOID: _sigmoid}
)


def ramp(start: float, target: float, blend: Blend, step: int, tempo: int) -> float:
    """Alpha in [0, 1] at epoch ``step`` of a ramp of ``tempo`` epochs from ``start`` to ``target``.

    The share of the way is ``step / tempo`` (linear), half a cosine wave, or a logistic curve stretched to end at 0 and
    1. Exactly ``start`` at step 0 and exactly ``target`` from step ``tempo`` on, never outside the two, monotone
    between.
    """
    if step <= 0:
        return start
    if step >= tempo:
        return target
    alpha = start + (target - start) * _SHAPES[blend](step / tempo)
    return min(max(alpha, min(start, target)), max(start, target))


def check_ramp(target: float, tempo: int) -> None:
    """Raise ``UsageError`` unless ``target`` is in [0, 1] and ``tempo`` at least one epoch."""
    if not 0.0 <= target <= 1.0:
        raise UsageError(f"alpha target {target} is outside [0, 1]")
    if tempo < 1:
        raise UsageError(f"a ramp of {tempo} epochs; the tempo is at least 1")
