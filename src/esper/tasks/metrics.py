"""What a user's model is scored by: a name, a function of one value per example, or an object that reduces a split."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esper.leyline import Metric, UsageError, unknown
from esper.tasks.answers import Accuracy, Constant, answers, scored_part
from esper.tasks.base import PerExample, SplitSource
from esper.tasks.facts import TargetFacts
from esper.tasks.losses import OwnLoss, shape_of
from esper.tasks.output_loss import Explanation
from esper.tasks.reduction import BatchLoss, Collected, MeanOf, RatioOf, SplitFigure, SplitMetric, Tally

NAMES = ("accuracy", "loss", "mae")


@dataclass(frozen=True, slots=True)
class Scored:
    """A metric of your own: what it is called, and how examples are scored."""

    metric: Metric
    score: PerExample | SplitMetric
    """``(output, targets)`` -> the score of each example, ``[N]``, whose mean is the metric in its unit; or an object
    that reduces over a split."""


MetricChoice = str | Accuracy | Scored | SplitMetric | PerExample
"""A name, an :class:`Accuracy`, a :class:`Scored`, an object with ``update``, ``compute`` and ``reset`` such as those
of torchmetrics, or a function ``(output, targets) -> [N]``."""


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """The first validation batch and what the untouched model says of it."""

    output: Any
    targets: Any
    n: int | None
    """Examples, if they can be counted."""
    loss: OwnLoss | None
    """What tells how targets are answered; ``None`` where nothing does."""
    loss_figure: BatchLoss
    validation: SplitSource
    facts: TargetFacts
    """Of the targets of the whole split."""
    own: Explanation | None = None
    """What the loss is that the model itself computes."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A metric and how its figure over a split comes about."""

    metric: Metric
    figure: SplitFigure


def judged_by(choice: Any, first: FirstBatch) -> Judged:
    """Make sure that ``choice`` can be measured. Raises ``UsageError`` saying what is legal where it cannot.

    The chance level is what the best constant answer scores on the validation split, by the metric itself; ``None``
    where the shapes do not tell what a constant answer would be.
    """
    if isinstance(choice, str):
        return _named(choice, first)
    if isinstance(choice, Accuracy):
        return _accuracy(choice, first)
    if isinstance(choice, Scored):
        judged = Judged(choice.metric, _figure(choice.score, choice.metric.name, first))
        return judged if choice.metric.chance is not None else _with_chance(judged, first)
    if inspect.isclass(choice):
        raise UsageError(f"metric is the class {choice.__name__}; give an object of it")
    if not isinstance(choice, SplitMetric) and not callable(choice):
        raise UsageError(
            f"metric is a {type(choice).__name__}; legal: {', '.join(map(repr, NAMES))}, an Accuracy, a Scored, an "
            "object with update, compute and reset, or a function (output, targets) -> one number per example"
        )
    metric = _described(choice)
    return _with_chance(Judged(metric, _figure(choice, metric.name, first)), first)


def _named(name: str, first: FirstBatch) -> Judged:
    if name == "accuracy":
        return _accuracy(Accuracy(), first)
    if name == "loss":
        # an overfitted model's loss passes chance though the model has not
        return Judged(Metric("loss", "", higher_is_better=False), first.loss_figure)
    if name == "mae":
        _aligned(scored_part(first.output, "mae"), first.targets)
        judged = Judged(Metric("mean absolute error", "", higher_is_better=False), MeanOf(_absolute_error))
        return _with_chance(judged, first)
    raise unknown("metric", name, NAMES)


def _accuracy(choice: Accuracy, first: FirstBatch) -> Judged:
    asked: Callable[[Any], Any] = _as_they_are
    if first.own is not None:
        asked = first.own.asked
        choice = choice if choice.class_axis is not None else replace(choice, class_axis=first.own.class_axis)
    elif first.loss is None:
        raise UsageError(
            "metric 'accuracy' cannot tell how the output answers the targets, since the model computes a loss of its "
            "own; give metric='loss', or Scored(Metric(...), lambda output, targets: one number per example)"
        )
    found = answers(choice, first.loss, first.output, asked(first.targets), first.facts)
    right = found.counted

    def counted(output: Any, targets: Any) -> tuple[Tensor, Tensor]:
        return right(output, asked(targets))

    judged = Judged(Metric("accuracy", "%", low=0.0, high=100.0), RatioOf(counted))
    return replace(judged, metric=replace(judged.metric, chance=_best_constant(judged, found.constants, first)))


def _as_they_are(targets: Any) -> Any:
    return targets


def _figure(score: Any, name: str, first: FirstBatch) -> SplitFigure:
    """The figure of a user's score, tried on the first batch."""
    if isinstance(score, SplitMetric):
        figure = Collected(score, lambda output: scored_part(output, name))
        try:
            tally = figure.tally(1, 1)
            tally.add(0, first.output, first.targets, first.n or 1)
            tally.summary()
        except UsageError:
            raise
        except Exception as error:  # a user's object may raise anything
            raise _unfit(name, first, error) from error
        return figure
    try:
        value = score(first.output, first.targets)
    except Exception as error:  # a user's function may raise anything
        raise _unfit(name, first, error) from error
    wanted = value.shape if first.n is None and isinstance(value, Tensor) and value.ndim == 1 else (first.n,)
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(wanted):
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        held = "a batch whose examples cannot be counted" if first.n is None else f"{first.n} examples"
        raise UsageError(
            f"metric {name!r} gives {found} for {held}; one number per example is needed, or an object with "
            "update, compute and reset for a metric that reduces over the split"
        )
    return MeanOf(score)


def _unfit(name: str, first: FirstBatch, error: Exception) -> UsageError:
    return UsageError(
        f"metric {name!r} fails on the first validation batch, output {shape_of(first.output)}, targets "
        f"{shape_of(first.targets)}: "
        f"{type(error).__name__}: {error}"
    )


def _described(choice: Any) -> Metric:
    """Name, direction and scale as the object itself has them; a function says that higher is better unless told."""
    name = getattr(choice, "__name__", type(choice).__name__)
    higher = getattr(choice, "higher_is_better", None)
    if higher is None and isinstance(choice, SplitMetric):
        raise UsageError(
            f"metric {name} does not say whether higher is better; "
            f"give Scored(Metric({name!r}, '', higher_is_better=...), metric)"
        )
    ends = [getattr(choice, f"plot_{end}_bound", None) for end in ("lower", "upper")]
    low, high = (float(end) if isinstance(end, int | float) else None for end in ends)
    scaled = low is not None and high is not None
    metric = Metric(name.strip("<>"), "", higher_is_better=higher is None or bool(higher))
    return replace(metric, low=low, high=high) if scaled else metric


def _absolute_error(output: Any, targets: Any) -> Tensor:
    answer, target = _aligned(scored_part(output, "mae"), targets)
    return (answer - target).abs().reshape(len(targets), -1).mean(dim=1)


def _aligned(answer: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(targets, Tensor):
        raise UsageError(
            f"metric 'mae' cannot tell which part of the targets, a {type(targets).__name__}, is answered; "
            "give Scored(Metric(...), lambda output, targets: one number per example)"
        )
    if [size for size in answer.shape if size != 1] != [size for size in targets.shape if size != 1]:
        raise UsageError(
            f"metric 'mae' compares an output of shape {tuple(answer.shape)} with targets of shape "
            f"{tuple(targets.shape)}; they must have one number for one number"
        )
    return answer, targets.reshape(answer.shape)


def _with_chance(judged: Judged, first: FirstBatch) -> Judged:
    """With the chance level of a metric that is no accuracy, where the loss and the shapes say what is constant."""
    if first.loss is None or not isinstance(first.output, Tensor):
        return judged
    try:
        found = answers(Accuracy(), first.loss, first.output, first.targets, first.facts, counting=False)
    except UsageError:
        return judged
    return replace(judged, metric=replace(judged.metric, chance=_best_constant(judged, found.constants, first)))


def _best_constant(judged: Judged, constants: Callable[[], Sequence[Constant]], first: FirstBatch) -> float | None:
    """The best score of a constant answer over the validation split."""
    batches = first.validation.parts(None)
    tallies = [(constant, judged.figure.tally(1, batches)) for constant in constants()]
    if not tallies:
        return None
    with torch.no_grad(), warnings.catch_warnings(), first.validation.reading(None) as reading:
        warnings.simplefilter("ignore")
        for _, targets, n in reading:
            tallies = [(constant, tally) for constant, tally in tallies if _taken(tally, constant, targets, n)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [_value(tally) for _, tally in tallies]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    return max(known) if judged.metric.higher_is_better else min(known)


def _taken(tally: Tally, constant: Constant, targets: Any, n: int) -> bool:
    """Whether the metric takes the constant answer."""
    try:
        tally.add(0, constant(targets), targets, n)
    except Exception:  # a user's function may raise anything
        return False
    return True


def _value(tally: Tally) -> float:
    try:
        return float(tally.summary().value[0])
    except Exception:  # a user's object may raise anything
        return math.nan
