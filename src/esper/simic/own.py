"""A user's own loss, metric and way to call a model, in the shape that the executor needs."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.leyline import Metric, UsageError, unknown
from esper.tasks.base import PerExample, Split
from esper.tolaria.material import Forward

Loader = Iterable[Any]
"""Batches of ``(inputs, targets)`` that can be read again each epoch, such as a ``DataLoader``."""

TrainingLoss = Callable[[Any, Tensor], Tensor]
"""``(output, targets) -> scalar``"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A metric: what it is called, and per-example scores whose mean it is."""

    metric: Metric
    score: PerExample


def scored_by(metric: str | Scored, loss: TrainingLoss, validation: Split) -> Scored:
    """A metric by name; the chance level of accuracy is the share of the commonest class in the validation split."""
    if isinstance(metric, Scored):
        return metric
    if metric == "accuracy":
        commonest = max(Counter(validation.targets.flatten().tolist()).values())
        chance = 100.0 * commonest / validation.targets.numel()
        return Scored(Metric("accuracy", "%", chance=chance), _accuracy)
    if metric == "loss":
        return Scored(Metric("loss", "", higher_is_better=False), per_example(loss))
    if metric == "mae":
        return Scored(Metric("mean absolute error", "", higher_is_better=False), _absolute_error)
    raise unknown("metric", metric, ("accuracy", "loss", "mae"))


def per_example(loss: TrainingLoss) -> PerExample:
    """The same loss, one value per example: ``reduction="none"`` where the loss knows it, else example by example."""
    unreduced: Callable[[Any, Tensor], Tensor] | None = None
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        unreduced = copy.copy(loss)
        setattr(unreduced, "reduction", "none")  # noqa: B010 - a module's attributes are not typed
    elif _takes_reduction(loss):
        unreduced = partial(cast(Callable[..., Tensor], loss), reduction="none")
    if unreduced is None:
        return lambda output, targets: torch.stack(
            [loss(output[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
        )
    each = unreduced
    return lambda output, targets: each(output, targets).reshape(len(targets), -1).mean(dim=1)


def _takes_reduction(loss: Any) -> bool:
    try:
        return "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return False


def _accuracy(output: Tensor, targets: Tensor) -> Tensor:
    """Percent, classes on axis 1; positions of a sequence or picture are averaged per example."""
    right = (output.argmax(dim=1) == targets).float()
    return 100.0 * right.reshape(len(targets), -1).mean(dim=1)


def _absolute_error(output: Tensor, targets: Tensor) -> Tensor:
    return (output - targets.reshape(output.shape)).abs().reshape(len(targets), -1).mean(dim=1)


class _Called(Exception):
    """Carries the arguments of the call that ``forward`` made."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.args_given, self.kwargs_given = args, kwargs


class _Recorder:
    """Stands in for the model, and knows all its attributes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise _Called(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def call_arguments(model: nn.Module, forward: Forward, inputs: Any) -> Any:
    """What ``forward(model, inputs)`` hands to the model: positional arguments as a tuple, else keywords as a mapping.

    Raises ``UsageError`` when ``forward`` does not call the model.
    """
    recorder: Any = _Recorder(model)
    try:
        forward(recorder, inputs)
    except _Called as made:
        if not made.kwargs_given:
            return made.args_given
        return inspect.signature(model.forward).bind(*made.args_given, **made.kwargs_given).arguments
    raise UsageError("forward(model, inputs) returned without calling the model; it must return model(...)")
