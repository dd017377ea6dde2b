"""Vital signs of one training run, judged against its own history: is the loss diverging, has the metric collapsed?

Thresholds come from what the run itself has shown (medians and median absolute deviations of recent epochs, and how far
it has come since its start), never from constants of a task. Only healthy epochs enter the history.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from esper.leyline import Metric

_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution (Rousseeuw and Croux 1993)."""


@dataclass(frozen=True, slots=True)
class VitalsConfig:
    """What counts as ill. Spreads are robust standard deviations."""

    window: int = 20
    """Healthy epochs that make up the recent history."""
    min_history: int = 5
    """Healthy epochs before spreads mean anything."""
    spreads: float = 8.0
    """A loss this many spreads above its recent median diverges..."""
    relapse: float = 0.25
    """...if it also gives back this share of the run's whole progress..."""
    rise: float = 1.0
    """...and rises by this share of its recent median: multiplicative noise of small losses is no divergence."""
    extreme: float = 4.0
    """A rise this many times as large needs no second epoch to be believed."""
    early_rise: float = 10.0
    """Before ``min_history``: a rise by this many times the median so far, believed at once."""
    collapse: float = 0.1
    """A metric that keeps at most this share of its recent lead over chance has collapsed..."""
    clear: float = 5.0
    """...if that lead was this many standard deviations from epoch to epoch; twice as many are believed at once."""


@dataclass(frozen=True, slots=True)
class Sign:
    """An ill vital sign: what was measured, the threshold it crossed, and whether one epoch is proof enough."""

    reason: str
    measured: float
    threshold: float
    certain: bool


@dataclass(slots=True)
class _Series:
    """Healthy values of one loss."""

    recent: deque[float]
    drifts: bool
    """Whether a steady rise is no illness: a validation loss climbs when the model overfits."""
    first: list[float] = field(default_factory=list)

    def accept(self, value: float) -> None:
        self.recent.append(value)
        if len(self.first) < 3:
            self.first.append(value)

    def divergence(self, value: float, config: VitalsConfig) -> Sign | None:
        """Whether ``value`` is too high to be a bad epoch of the same run."""
        if not self.recent:
            return None
        values = list(self.recent)
        middle = median(values[-config.min_history :])
        if self.drifts:
            middle = max(middle, values[-1])
        if len(values) < config.min_history:
            limit = middle + config.early_rise * max(abs(middle), max(values) - min(values))
            return Sign("divergence", value, limit, certain=True) if value > limit else None
        progress = max(0.0, median(self.first) - middle)
        distance = max(config.spreads * _spread(values), config.relapse * progress, config.rise * abs(middle))
        if not value > middle + distance:
            return None
        return Sign("divergence", value, middle + distance, certain=value > middle + config.extreme * distance)


def _spread(values: Sequence[float]) -> float:
    """Robust standard deviation from epoch to epoch: by successive differences, so that a trend is not noise."""
    steps = [after - before for before, after in pairwise(values)]
    middle = median(steps)
    return _MAD_TO_SIGMA * median(abs(step - middle) for step in steps) / math.sqrt(2.0)


class Vitals:
    """History and judgement of one run. ``judge`` first, ``accept`` only what was found healthy."""

    def __init__(self, metric: Metric, config: VitalsConfig) -> None:
        self.metric, self.config = metric, config
        self._losses = {name: self._series(name) for name in ("train", "validation")}
        self._leads: deque[float] = deque(maxlen=config.window)

    def judge(self, train_loss: float | None, val_loss: float | None, metric: float | None) -> Sign | None:
        """The most certain ill sign, or ``None``. What was not measured (``None``) is not judged."""
        for value, reason in ((train_loss, "loss"), (val_loss, "loss"), (metric, "metric")):
            if value is not None and not math.isfinite(value):
                return Sign(f"non_finite_{reason}", value, math.inf, certain=True)
        signs = [None if metric is None else self._collapsed(metric)]
        signs += [
            self._losses[name].divergence(value, self.config)
            for name, value in (("train", train_loss), ("validation", val_loss))
            if value is not None
        ]
        return max((sign for sign in signs if sign is not None), key=lambda sign: sign.certain, default=None)

    def accept(self, train_loss: float | None, val_loss: float | None, metric: float | None) -> None:
        """Take a healthy epoch into the history."""
        for name, value in (("train", train_loss), ("validation", val_loss)):
            if value is not None:
                self._losses[name].accept(value)
        if metric is not None and self.metric.chance is not None:
            self._leads.append(self._lead(metric))

    def _lead(self, metric: float) -> float:
        """How far ``metric`` is on the good side of chance, in its unit."""
        assert self.metric.chance is not None
        return metric - self.metric.chance if self.metric.higher_is_better else self.metric.chance - metric

    def _collapsed(self, metric: float) -> Sign | None:
        """Whether ``metric`` fell back to chance from a lead that was clear of its own noise."""
        chance, config = self.metric.chance, self.config
        if chance is None or len(self._leads) < config.min_history:
            return None
        usual = median(list(self._leads)[-config.min_history :])
        steps = [after - before for before, after in pairwise(self._leads)]
        middle = fmean(steps)
        # not by medians: over a handful of epochs they can find far too little noise, and then luck looks like a lead
        noise = math.sqrt(sum((step - middle) ** 2 for step in steps) / (len(steps) - 1) / 2.0)
        if usual <= config.clear * noise or usual <= 0.0 or self._lead(metric) > config.collapse * usual:
            return None
        limit = chance + math.copysign(config.collapse * usual, 1 if self.metric.higher_is_better else -1)
        return Sign("collapse_to_chance", metric, limit, certain=usual > 2.0 * config.clear * noise)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        losses = {name: {"recent": list(s.recent), "first": list(s.first)} for name, s in self._losses.items()}
        return {"losses": losses, "leads": list(self._leads)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""
        for name, saved in state["losses"].items():
            self._losses[name] = self._series(name, saved["recent"], saved["first"])
        self._leads = deque(state["leads"], maxlen=self.config.window)

    def _series(self, name: str, recent: Sequence[float] = (), first: Sequence[float] = ()) -> _Series:
        return _Series(deque(recent, maxlen=self.config.window), name == "validation", list(first))
