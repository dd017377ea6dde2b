"""The loss that a model computes itself, from the labels among its inputs, and puts into its output.

Such a loss is one number a batch. Where it provably is a loss that is known, taken of the output's ``logits`` and the
labels, each example has a loss of its own too, and it is clear how the logits answer the labels: a language model's
answer the label that comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.leyline import UsageError
from esper.tasks.losses import FEWEST_BATCHES, one_number
from esper.tasks.reduction import BatchLoss

_IGNORED: Final = -100


def output_loss(output: Any, targets: Any = None) -> Tensor:
    """The output's own ``loss``. Raises ``UsageError`` where there is none."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise UsageError(
            f"no loss was given, and the model's output, a {type(output).__name__}, has none: give loss=, or labels "
            "among the inputs, or a forward=lambda model, batch: ... whose output has a 'loss'"
        )
    return one_number(loss)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a model's own loss provably is."""

    loss: nn.Module
    asked: Callable[[Tensor], Tensor]
    """``labels -> what the logits answer``, in the same shape"""
    class_axis: int | None
    _each: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def each(self, output: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """``(output, labels) -> sums [N], weights [N]``"""
        return self._each(_logits(output), self.asked(targets))


def explained(output: Any, targets: Any) -> Explanation | None:
    """The known loss that gives the output's own on this batch, if there is one."""
    logits = _logits(output)
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        return None
    told = output_loss(output).double()
    for each in _KNOWN:
        try:
            sums, weights = each.each(output, targets)
        except (RuntimeError, ValueError, IndexError, TypeError):
            continue
        near = max(1e-4, 8 * torch.finfo(logits.dtype).eps)
        if bool(torch.isclose(sums.double().sum() / weights.double().sum(), told, rtol=near, atol=1e-6)):
            return each
    return None


def own_output_loss(output: Any, targets: Any, batches: int, n: int | None) -> tuple[BatchLoss, Explanation | None]:
    """The model's own loss as a figure: the mean over examples of the losses of their batches.

    Raises ``UsageError`` where it has no standard error: it cannot be taken of a part of a batch.
    """
    output_loss(output)
    found = explained(output, targets) if n is not None else None
    if found is None and batches < FEWEST_BATCHES:
        raise UsageError(
            f"the model's own loss has no value by example, and validation has {batches} "
            f"batch{'es' if batches > 1 else ''}; give it at least {FEWEST_BATCHES}, so that differences have a "
            "standard error"
        )
    each = None if found is None else found.each
    return BatchLoss(output_loss, _examples, each, divisible=False), found


def _examples(targets: Any, n: int) -> Tensor:
    return torch.tensor(float(n))


def _logits(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _as_they_are(labels: Tensor) -> Tensor:
    return labels


def _next(labels: Tensor) -> Tensor:
    """Of a sequence ``[N, T]`` each the one behind it."""
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError("no sequence of class numbers")
    return F.pad(labels[:, 1:], (0, 1), value=_IGNORED)


def _classes(logits: Tensor, labels: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    logits = logits if axis == 1 else logits.flatten(0, -2)
    values = F.cross_entropy(logits.float(), labels if axis == 1 else labels.flatten(), reduction="none")
    return values.reshape(len(labels), -1).sum(1), (labels != _IGNORED).reshape(len(labels), -1).sum(1)


def _elements(unreduced: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if logits.numel() != labels.numel() or not labels.is_floating_point():
        raise ValueError("not one number for one number")
    values = unreduced(logits.float(), labels.reshape(logits.shape).float(), reduction="none").reshape(len(labels), -1)
    return values.sum(1), torch.full((len(values),), values.shape[1], device=values.device)


_KNOWN: Final = (
    Explanation(nn.CrossEntropyLoss(), _as_they_are, -1, partial(_classes, axis=-1)),
    Explanation(nn.CrossEntropyLoss(), _next, -1, partial(_classes, axis=-1)),
    Explanation(nn.CrossEntropyLoss(), _as_they_are, 1, partial(_classes, axis=1)),
    Explanation(nn.BCEWithLogitsLoss(), _as_they_are, None, partial(_elements, F.binary_cross_entropy_with_logits)),
    Explanation(nn.MSELoss(), _as_they_are, None, partial(_elements, F.mse_loss)),
)
