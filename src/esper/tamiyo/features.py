"""The one observation of a growing host: what every feature is, and how a :class:`EnvView` becomes a vector.

Features are scale-free where they can be, so that one policy serves tasks of other metrics: a metric with a scale is
given in percent of it, up meaning better, so that percent, fraction and error read alike; a change is given relative to
the level, a paired difference also in its own standard errors, levels under a logarithm. Values are divided by the
declared range and clipped to [-1, 1]. An unknown value is 0 with its known-flag 0. An infinite one is clipped to the
end of the range, a NaN is 0; both are known, and a flag of their own says that they are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from esper.leyline import EnvView, Fact, Feature, Metric, ObservationLayout, Op, Paired, Promise, SeedStage, SlotView

TREND_WINDOWS: Final = (1, 3, 5)
"""Epochs over which the trend of metric and loss is given."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees of one env."""

    vector: npt.NDArray[np.float32]
    """``[LAYOUT.width(number of slots)]``: the host's part, then each slot's."""
    blueprints: npt.NDArray[np.int64]
    """``[slot]``: 1 + index of the seed's blueprint in the env's list; 0 where the slot is empty."""


@dataclass(frozen=True, slots=True)
class _Column(Generic[T]):
    """A declared feature and how it is read; ``None`` where it is unknown."""

    feature: Feature
    read: Callable[[T], float | None]

    def write(self, subject: T) -> tuple[float, ...]:
        value = self.read(subject)
        if self.feature.optional:
            return (0.0, 0.0) if value is None else (_scaled(value, self.feature), 1.0)
        if value is None:
            raise ValueError(f"feature {self.feature.name} is declared as always known")
        return (_scaled(value, self.feature),)


@dataclass(frozen=True, slots=True)
class _Place:
    """A slot in its env."""

    view: EnvView
    slot: SlotView
    index: int


Reading = Callable[[EnvView], float | None]
Place = Callable[[_Place], float | None]


def encode(view: EnvView, slots: Sequence[str] | None = None) -> Observation:
    """Observation of ``view`` in the layout :data:`LAYOUT`; ``slots`` orders the slots' parts (default: as there)."""
    places = {slot.slot_id: _Place(view, slot, i) for i, slot in enumerate(view.slots)}
    ordered = [places[name] for name in (slots or places)]
    entries = [entry for column in _HOST for entry in column.write(view)]
    entries += [entry for place in ordered for column in _SLOT for entry in column.write(place)]
    indices = [_blueprint_index(place) for place in ordered]
    return Observation(np.array(entries, dtype=np.float32), np.array(indices, dtype=np.int64))


def _blueprint_index(place: _Place) -> int:
    blueprint = place.slot.blueprint
    return 0 if blueprint is None or not place.slot.live else 1 + place.view.blueprints.index(blueprint)


def _scaled(value: float, feature: Feature) -> float:
    if math.isnan(value):
        return 0.0
    return max(-1.0, min(1.0, value / max(abs(feature.low), abs(feature.high))))


def _symlog(value: float) -> float:
    """``sign(x) log(1 + |x|)``: the sign and the order of magnitude."""
    return math.copysign(math.log1p(abs(value)), value)


def _share(change: float, level: float) -> float:
    """``change / (|level| + |change|)``, in [-1, 1]; an infinite change is all there is, a change of 0 nothing."""
    if math.isinf(change):
        return math.copysign(1.0, change)
    return change / (abs(level) + abs(change)) if change else 0.0


def _always(name: str, high: float, unit: str, read: Callable[[T], float | None]) -> _Column[T]:
    return _Column(Feature(name, 0.0, high, unit), read)


def _maybe(name: str, low: float, high: float, unit: str, read: Callable[[T], float | None]) -> _Column[T]:
    return _Column(Feature(name, low, high, unit, optional=True), read)


def _scale(view: EnvView) -> Metric | None:
    """The metric, where it has a scale to be read on."""
    metric = view.gates.metric
    return metric if metric is not None and metric.span is not None else None


def _goodness(view: EnvView, value: float) -> float:
    """A level of the metric, on its scale where there is one."""
    scale = _scale(view)
    return value if scale is None else scale.goodness(value)


def _metric(view: EnvView) -> float | None:
    return None if view.metric is None else _goodness(view, view.metric)


def _loss(view: EnvView) -> float | None:
    return view.loss


def _train_loss(view: EnvView) -> float | None:
    return view.train_loss


def _better_metric(view: EnvView) -> tuple[float, ...]:
    """The metric's history with up meaning better."""
    if (scale := _scale(view)) is not None:
        return tuple(map(scale.goodness, view.metric_history))
    return view.metric_history if view.higher_is_better else tuple(-value for value in view.metric_history)


def _better_loss(view: EnvView) -> tuple[float, ...]:
    return tuple(-value for value in view.loss_history)


def _level(view: EnvView, read: Reading) -> float | None:
    value = read(view)
    return None if value is None else _symlog(value)


def _not_finite(view: EnvView, read: Reading) -> float | None:
    value = read(view)
    return None if value is None else float(not math.isfinite(value))


def _trend(view: EnvView, history: Callable[[EnvView], tuple[float, ...]], window: int | None) -> float | None:
    """Change over the last ``window`` epochs (since the first when ``None``); unknown unless both ends are finite."""
    values = history(view)
    start = 0 if window is None else len(values) - 1 - window
    if start < 0 or len(values) < 2 or not (math.isfinite(values[start]) and math.isfinite(values[-1])):
        return None
    return _share(values[-1] - values[start], values[start])


def _used(used: int, limit: int | None) -> float | None:
    return used / limit if limit else None


def _acted(view: EnvView, op: Op) -> float | None:
    return None if view.last_outcome is None else float(view.last_outcome.action.op is op)


def _succeeded(view: EnvView) -> float | None:
    return None if view.last_outcome is None else float(view.last_outcome.success)


def _levels(name: str, read: Reading) -> list[_Column[EnvView]]:
    return [
        _maybe(name, -7.0, 7.0, "symlog", partial(_level, read=read)),
        _maybe(f"{name}_not_finite", 0.0, 1.0, "flag", partial(_not_finite, read=read)),
    ]


def _trends(name: str, history: Callable[[EnvView], tuple[float, ...]]) -> list[_Column[EnvView]]:
    return [
        _maybe(f"{name}_trend_{window or 'all'}", -1.0, 1.0, "share", partial(_trend, history=history, window=window))
        for window in (*TREND_WINDOWS, None)
    ]


_HOST: Final[tuple[_Column[EnvView], ...]] = (
    _always("progress", 1.0, "share of the epochs", lambda view: view.epoch / view.max_epochs),
    _always("max_epochs", 7.0, "symlog(epochs)", lambda view: _symlog(view.max_epochs)),
    _always("slots", 3.5, "symlog(slots)", lambda view: _symlog(len(view.slots))),
    _always("host_parameters", 21.0, "symlog(parameters)", lambda view: _symlog(view.host_parameters)),
    _always("growth", 5.0, "symlog(seed / host)", lambda view: _symlog(view.seed_parameters / view.host_parameters)),
    _always("live_slots", 1.0, "share of the slots", lambda view: view.live_seeds / len(view.slots)),
    _maybe("seeds_used", 0.0, 1.0, "share of max_seeds", lambda view: _used(view.live_seeds, view.max_seeds)),
    _maybe("budget_used", 0.0, 1.0, "share", lambda view: _used(view.seed_parameters, view.parameter_budget)),
    _always("pruned", 3.5, "symlog(seeds)", lambda view: _symlog(sum(view.pruned.values()))),
    _always("fossilized", 3.5, "symlog(seeds)", lambda view: _symlog(sum(view.fossilized.values()))),
    *_levels("metric", _metric),
    *_levels("loss", _loss),
    *_levels("train_loss", _train_loss),
    *_trends("metric", _better_metric),
    *_trends("loss", _better_loss),
    *(_maybe(f"last_{op.name.lower()}", 0.0, 1.0, "flag", partial(_acted, op=op)) for op in Op),
    _maybe("last_success", 0.0, 1.0, "flag", _succeeded),
)


def _is(place: _Place, stage: SeedStage) -> float:
    return float(place.slot.stage is stage)


def _violations(place: _Place) -> float | None:
    count = place.slot.isolation_violations
    return None if count is None else _symlog(count)


def _since_germination(place: _Place) -> float | None:
    before, view = place.slot.metric_at_germination, place.view
    now = _metric(view)
    if before is None or now is None or not math.isfinite(before):
        return None
    before = _goodness(view, before)
    ascending = view.higher_is_better or _scale(view) is not None
    return _share(now - before if ascending else before - now, before)


def _fact(place: _Place, name: str) -> Fact[Any] | None:
    fact: Fact[Any] | None = getattr(place.slot, name)
    return fact


def _value(place: _Place, name: str) -> float | None:
    fact = _fact(place, name)
    return None if fact is None else float(fact.value)


def _relative(place: _Place, name: str, level: Reading) -> float | None:
    fact, now = _fact(place, name), level(place.view)
    if fact is None or now is None:
        return None
    scale = _scale(place.view) if level is _metric else None
    percent = 1.0 if scale is None or scale.span is None else 100.0 / scale.span
    return _share(percent * fact.value.value, now)


def _errors(place: _Place, name: str) -> float | None:
    fact = _fact(place, name)
    if fact is None:
        return None
    value, se = fact.value.value, fact.value.se
    return value / se if se else math.copysign(math.inf, value) if value else 0.0


def _fact_not_finite(place: _Place, name: str) -> float | None:
    fact = _fact(place, name)
    if fact is None:
        return None
    numbers = (fact.value.value, fact.value.se) if isinstance(fact.value, Paired) else (fact.value,)
    return float(not all(map(math.isfinite, numbers)))


def _age(place: _Place, name: str) -> float | None:
    fact = _fact(place, name)
    return None if fact is None or fact.epoch is None else _symlog(place.view.epoch - fact.epoch)


def _circumstances(name: str) -> list[_Column[_Place]]:
    return [
        _maybe(f"{name}_not_finite", 0.0, 1.0, "flag", partial(_fact_not_finite, name=name)),
        _maybe(f"{name}_age", 0.0, 5.0, "symlog(epochs)", partial(_age, name=name)),
    ]


def _number(name: str, high: float, unit: str) -> list[_Column[_Place]]:
    return [_maybe(name, 0.0, high, unit, partial(_value, name=name)), *_circumstances(name)]


def _paired(name: str, level: Reading) -> list[_Column[_Place]]:
    return [
        _maybe(name, -1.0, 1.0, "share", partial(_relative, name=name, level=level)),
        _maybe(f"{name}_errors", -10.0, 10.0, "standard errors", partial(_errors, name=name)),
        *_circumstances(name),
    ]


def _promise(slot: SlotView) -> Promise | None:
    """The greatest of all blueprints that were auditioned there; what is no number is the least."""
    return max(slot.promise.values(), key=lambda p: (not math.isnan(p.value), p.value), default=None)


def _promised(place: _Place) -> float | None:
    promise, now = _promise(place.slot), place.view.train_loss
    return None if promise is None or now is None else _share(promise.value, now)


def _of_greatest(place: _Place) -> float | None:
    """1 where the most is promised; 0 where nothing that is promised anywhere is above 0."""
    mine = _promise(place.slot)
    if mine is None:
        return None
    heard = [each.value for slot in place.view.slots if (each := _promise(slot)) is not None]
    greatest = max((value for value in heard if math.isfinite(value)), default=0.0)
    return mine.value / greatest if greatest > 0 else 0.0


def _promise_not_finite(place: _Place) -> float | None:
    promise = _promise(place.slot)
    return None if promise is None else float(not math.isfinite(promise.value))


def _promise_age(place: _Place) -> float | None:
    promise = _promise(place.slot)
    return None if promise is None or promise.epoch is None else _symlog(place.view.epoch - promise.epoch)


_SLOT: Final[tuple[_Column[_Place], ...]] = (
    _always("position", 1.0, "share of the slots before", lambda p: p.index / max(1, len(p.view.slots) - 1)),
    *(_always(f"is_{stage.name.lower()}", 1.0, "flag", partial(_is, stage=stage)) for stage in SeedStage),
    _always("alpha", 1.0, "share", lambda p: p.slot.alpha),
    _maybe("alpha_target", 0.0, 1.0, "share", lambda p: p.slot.alpha_target),
    _always("parameters", 5.0, "symlog(seed / host)", lambda p: _symlog(p.slot.parameters / p.view.host_parameters)),
    _always("epochs_in_stage", 5.0, "symlog(epochs)", lambda p: _symlog(p.slot.epochs_in_stage)),
    _always("age", 5.0, "symlog(epochs)", lambda p: _symlog(p.slot.age_epochs)),
    _always("vetoed", 1.0, "flag", lambda p: float(p.slot.slot_id in p.view.vetoed)),
    _always("blocked", 1.0, "flag", lambda p: float(bool(p.slot.blocked_by))),
    _maybe("metric_since_germination", -1.0, 1.0, "share", _since_germination),
    _maybe("isolation_violations", 0.0, 3.5, "symlog(count)", _violations),
    *_number("gradient_ratio", 10.0, "ratio"),
    *_number("gradient_health", 1.0, "share"),
    *_paired("removal_cost", _metric),
    *_paired("removal_cost_loss", _loss),
    *_paired("probe_gain", _metric),
    *_paired("probe_gain_loss", _loss),
    # what came later stands at the end: a network looks at as many entries as its file says, and no further
    _always("generation", 3.5, "symlog(seeds kept before)", lambda p: _symlog(p.slot.generation)),
    _maybe("promise", -1.0, 1.0, "share of the training loss", _promised),
    _maybe("promise_of_greatest", -1.0, 1.0, "share of the greatest of all slots", _of_greatest),
    _maybe("promise_not_finite", 0.0, 1.0, "flag", _promise_not_finite),
    _maybe("promise_age", 0.0, 5.0, "symlog(epochs)", _promise_age),
)

LAYOUT: Final = ObservationLayout(
    host=tuple(column.feature for column in _HOST), slot=tuple(column.feature for column in _SLOT)
)
"""Every feature there is. It serves any number of slots, any blueprints and any task.

A slot's part grows at its end alone: of a policy's file the widths say what it was made for, and a policy goes on
seeing that and nothing else.
"""
