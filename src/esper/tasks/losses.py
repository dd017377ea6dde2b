"""A user's own loss as a figure over a split: reduced as it reduces itself, never as something like it.

The loss is always taken of whole batches. The split's figure is their mean, each batch by what the loss counts in it:
targets that are not ignored, by the weights of their classes, where it is a mean of cross-entropies or log-likelihoods,
so that the figure is the loss over the split at once; examples for any other.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.structure import tensors
from esper.leyline import UsageError
from esper.tasks.reduction import BatchLoss, Counted, divisible

OwnLoss = Callable[[Any, Any], Tensor]
"""``(output, targets) -> scalar``"""

FEWEST_BATCHES = 8
"""Of a loss that can only be taken of whole batches: with fewer its standard errors mean nothing."""

_LOGITS = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, nn.MultiLabelSoftMarginLoss)
_PROBABILITIES = (nn.BCELoss, F.binary_cross_entropy, nn.MSELoss, F.mse_loss, nn.L1Loss, F.l1_loss)
_CLASSES = (nn.CrossEntropyLoss, F.cross_entropy, nn.NLLLoss, F.nll_loss)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a mean of cross-entropies or log-likelihoods counts."""

    weight: Tensor | None
    """``[classes]``"""
    ignore_index: int

    def __call__(self, targets: Tensor) -> Tensor:
        """How much each target counts, in the shape of class numbers; targets that are probabilities all count alike,
        ``[N]`` or ``[N, ...]`` without the classes.
        """
        if targets.is_floating_point():
            return torch.ones_like(targets[:, 0]) if targets.ndim > 1 else torch.ones_like(targets)
        kept = targets != self.ignore_index
        if self.weight is None:
            return kept.double()
        numbers = targets.where(kept, torch.zeros_like(targets)).long()
        return kept * self.weight.to(targets.device, torch.float64)[numbers]


def is_one_of(loss: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether ``loss`` is an object of one of these classes, one of these functions, or a partial call of one."""
    function = loss.func if isinstance(loss, partial) else loss
    return any(isinstance(loss, kind) if inspect.isclass(kind) else function is kind for kind in kinds)


def takes_logits(loss: Any) -> bool:
    """Whether 0 is where the loss's two labels meet."""
    return is_one_of(loss, _LOGITS)


def takes_probabilities(loss: Any) -> bool:
    """Whether one half is where the loss's two labels meet."""
    return is_one_of(loss, _PROBABILITIES)


def takes_classes(loss: Any) -> bool:
    """Whether the loss has classes on axis 1 of the output."""
    return is_one_of(loss, _CLASSES)


def counts_of(loss: Any) -> Counts | None:
    """What ``loss`` counts, where it is a mean of cross-entropies or log-likelihoods."""
    if not takes_classes(loss) or _reduction(loss) != "mean":
        return None
    if isinstance(loss, partial):
        return Counts(loss.keywords.get("weight"), loss.keywords.get("ignore_index", -100))
    weight = getattr(loss, "weight", None)
    return Counts(weight if isinstance(weight, Tensor) else None, getattr(loss, "ignore_index", -100))


def _reduction(loss: Any) -> Any:
    if isinstance(loss, partial):
        return loss.keywords.get("reduction", "mean")
    return getattr(loss, "reduction", "mean")


def own_loss(loss: OwnLoss, output: Any, targets: Any, batches: int, n: int | None) -> BatchLoss:
    """``loss`` as a figure; ``output`` and ``targets`` are one batch of ``n`` examples, of ``batches`` in the split.

    Where the examples cannot be counted ``n`` is ``None``. Raises ``UsageError`` where the loss does not take them, is
    not one number, or has no standard error.
    """
    whole = _tried(loss, output, targets)
    counts = counts_of(loss)

    def weigh(those: Any, examples: int) -> Tensor:
        return torch.tensor(float(examples)) if counts is None else counts(those).sum()

    each = None if n is None else _by_example(loss, counts, output, targets, whole)
    if each is not None:
        return BatchLoss(loss, weigh, each)
    if n is None:
        against: str | None = "they do not tell how many examples they hold"
    else:
        against = divisible(loss, output, targets, n)
    if against is not None and batches < FEWEST_BATCHES:
        raise UsageError(
            f"the loss has no value by example and its batches cannot be divided ({against}), and validation "
            f"has {batches} batch{'es' if batches > 1 else ''}; give it at least {FEWEST_BATCHES}, so that differences "
            "have a standard error"
        )
    return BatchLoss(loss, weigh, divisible=against is None)


def _tried(loss: OwnLoss, output: Any, targets: Any) -> Tensor:
    try:
        value = loss(output, targets)
    except UsageError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise UsageError(
            f"loss(output, targets) fails on the first validation batch, with targets {shape_of(targets)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return one_number(value).detach()


def one_number(value: Any) -> Tensor:
    """What a loss gives, as a tensor without axes. Raises ``UsageError`` where it is no single number."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UsageError(f"loss(output, targets) gives {found}; one number for the batch is needed, as a tensor")
    return value if value.ndim == 0 else value.reshape(())


def shape_of(tree: Any) -> str:
    """Type and shape of the tensors in it, for people."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    return ", ".join(shape_of(tensor) for _, tensor in tensors(tree)) or f"a {type(tree).__name__}"


def _by_example(loss: OwnLoss, counts: Counts | None, output: Any, targets: Any, whole: Tensor) -> Counted | None:
    """The loss by example where that provably is the same loss: on this batch it adds up to what the loss says."""
    unreduced = _unreduced(loss)
    if unreduced is None or not isinstance(targets, Tensor):
        return None
    for weights in (_counted(counts),) if counts is not None else (_elements, _examples):
        counted = partial(_sums, unreduced, weights)
        try:
            sums, weight = counted(output, targets)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        told = sums.double().sum() / weight.double().sum()
        near = max(1e-4, 8 * torch.finfo(whole.dtype).eps)
        if bool(torch.isclose(told, whole.double().reshape(()), rtol=near, atol=1e-6)):
            return counted
    return None


def _sums(
    unreduced: OwnLoss, weights: Callable[[Tensor, Tensor], Tensor], output: Any, targets: Tensor
) -> tuple[Tensor, Tensor]:
    values = unreduced(output, targets)
    n = len(targets)
    if values.ndim == 0 or len(values) != n:
        raise ValueError(f"a loss of shape {tuple(values.shape)} for {n} examples")
    return values.reshape(n, -1).sum(dim=1), weights(values, targets)


def _counted(counts: Counts) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda values, targets: counts(targets).reshape(len(targets), -1).sum(dim=1)


def _elements(values: Tensor, targets: Tensor) -> Tensor:
    """A mean over all elements."""
    return torch.full((len(targets),), values.numel() / len(targets), device=values.device)


def _examples(values: Tensor, targets: Tensor) -> Tensor:
    """A sum over elements, a mean over examples."""
    return torch.ones(len(targets), device=values.device)


def _unreduced(loss: Any) -> OwnLoss | None:
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return None
        unreduced = copy.copy(loss)
        setattr(unreduced, "reduction", "none")  # noqa: B010 - a module's attributes are not typed
        return unreduced
    try:
        knows = "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):
        return None
    return partial(cast(Callable[..., Tensor], loss), reduction="none") if knows else None
