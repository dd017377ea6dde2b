"""What a task is scored by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from esper.leyline.errors import UsageError


@dataclass(frozen=True, slots=True)
class Metric:
    """What a task is scored by.

    ``low`` and ``high`` are the ends of its scale, both or neither. Where they are known a figure can be judged by its
    share of the scale, so that percent and fraction are judged alike. Raises ``UsageError`` where they are no scale.
    """

    name: str
    unit: str
    """Printed behind every figure, such as ``%``; may be empty."""
    higher_is_better: bool = True
    chance: float | None = None
    """What guessing scores; ``None`` where there is no such thing."""
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if ends == (None, None):
            return
        if self.low is None or self.high is None or not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise UsageError(
                f"metric {self.name!r} has the scale {self.low} to {self.high}; "
                "low and high are two finite numbers, the smaller first, or neither is given"
            )

    @property
    def span(self) -> float | None:
        """Length of the scale, in the metric's unit."""
        return None if self.low is None or self.high is None else self.high - self.low

    def goodness(self, value: float) -> float:
        """``value`` with up meaning better, in percent of the scale where there is one, else in the unit as it is."""
        if self.low is None or self.high is None:
            return value
        return (value - self.low if self.higher_is_better else self.high - value) * (100.0 / (self.high - self.low))
