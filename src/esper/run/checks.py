"""What can be known to be wrong before the first batch, in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from esper.kasmina.structure import mapped, tensors
from esper.kasmina.trial import trial
from esper.leyline import UsageError

_CANNOT: Final = {
    "LBFGS": "it trains a single parameter group",
    "Muon": "it trains matrices alone",
    "SparseAdam": "it takes sparse gradients alone",
}
"""Optimizers, by name of their class, that seeds cannot join."""


def whole(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Raise ``UsageError`` unless ``value`` is a whole number of at least ``least``."""
    right = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    if not right and not (optional and value is None):
        none = ", or None" if optional else ""
        raise UsageError(f"{name} is {value!r}; legal: a whole number of at least {least}{none}")


def positive(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless ``value`` is a finite number above 0."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0.0 < number < math.inf:
        raise UsageError(f"{name} is {value!r}; legal: a finite number above 0")


def names(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless ``value`` is ``None`` or one name or more."""
    if value is None:
        return
    if isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise UsageError(f"{name} is {value!r}; legal: a tuple of names, or None for everything that fits")
    if not value:
        raise UsageError(f"{name} is empty; legal: one name or more, or None for all; policy='static' grows nothing")


def made(name: str, value: Any, kind: type) -> None:
    """Raise ``UsageError`` unless ``value`` is an object of ``kind``."""
    if not isinstance(value, kind):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise UsageError(f"{name} is {what}; legal: a {kind.__name__}")


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Raise ``UsageError`` for what is no optimizer of the model, or one that seeds cannot join."""
    if isinstance(optimizer, type):
        raise UsageError(
            f"optimizer is the class {optimizer.__name__}; make one: {optimizer.__name__}(model.parameters(), lr=...)"
        )
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"optimizer is a {type(optimizer).__name__}; legal: an optimizer of torch.optim or a subclass")
    for kind in type(optimizer).__mro__:
        if kind.__name__ in _CANNOT:
            raise UsageError(
                f"{kind.__name__} cannot train what grows: {_CANNOT[kind.__name__]}; use SGD, Adam or AdamW"
            )
    own = set(model.parameters())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for_seeds = not held and not any(parameter.requires_grad for parameter in own)
    if not for_seeds and own.isdisjoint(held):
        raise UsageError("the optimizer holds no parameter of the model; make it over model.parameters()")


def check_loss(loss: Any) -> None:
    """Raises ``UsageError`` for what is no function."""
    if isinstance(loss, type):
        raise UsageError(f"loss is the class {loss.__name__}; make one: {loss.__name__}()")
    if not callable(loss):
        raise UsageError(f"loss is a {type(loss).__name__}; legal: a function (output, targets) -> scalar")


def check_model(model: nn.Module, forward: Callable[[nn.Module, Any], Any], inputs: Any) -> None:
    """Try the model in both modes on a few examples, without a trace.

    Raises ``UsageError`` for a model that gives NaN, or nothing finite, in evaluation alone. What raises here on its
    own is left for training to raise, where all examples are there.
    """
    said: dict[bool, Any] = {}
    for training in (False, True):
        try:
            with trial(model, training):
                said[training] = forward(model, mapped(inputs, torch.clone))
        except Exception:
            return
    if (what := _no_number(said[False])) and not _no_number(said[True]):
        raise UsageError(
            f"the model gives {what} in eval() and numbers in train(): look at the running statistics of its norms"
        )


def _no_number(output: Any) -> str:
    """What is wrong with an output; minus infinity for a class that is ruled out is not."""
    floats = [t for _, t in tensors(output) if t.is_floating_point() or t.is_complex()]
    if any(bool(t.isnan().any()) for t in floats):
        return "NaN"
    return "infinity alone" if any(t.numel() and not bool(t.isfinite().any()) for t in floats) else ""
