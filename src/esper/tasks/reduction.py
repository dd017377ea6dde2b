"""How a figure over a split comes about, one batch at a time, under several configurations of a model at once.

No outputs are kept. Each figure knows the standard error of its paired differences: from the examples where it is made
of one value per example, else from a jackknife that leaves out one group of examples after another (Quenouille 1956;
Efron and Stein 1981).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.kasmina.structure import mapped
from esper.leyline import UsageError

Floats = npt.NDArray[np.float64]

GROUPS = 16
"""Fewest groups of a jackknife: of as many batches or more each goes to a group as a whole, fewer are divided."""

Counted = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""``(output, targets) -> sums [N], weights [N]``: what each example adds, and how much of it counts."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Arrays ``[configs]``: the figure, and the standard error of its paired difference to the first one's."""

    value: Floats
    se: Floats


class Tally(Protocol):
    """A figure in the making."""

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        """Take in one batch: its output under each configuration."""

    def summary(self) -> Summary:
        """The figure over all that was added."""


class SplitFigure(Protocol):
    """A number over a split."""

    def tally(self, configs: int, batches: int) -> Tally:
        """Begin a count for ``configs`` configurations over ``batches`` batches."""


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The mean of one value per example."""

    each: Callable[[Any, Tensor], Tensor]
    """``(output, targets) -> [N]``"""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _Means(self.each, configs)


class _Means:
    def __init__(self, each: Callable[[Any, Tensor], Tensor], configs: int) -> None:
        self._each = each
        self._values: list[list[Tensor]] = [[] for _ in range(configs)]

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        for kept, output in zip(self._values, outputs, strict=True):
            kept.append(self._each(output, targets))

    def summary(self) -> Summary:
        values = torch.stack([torch.cat(kept).double() for kept in self._values])
        means = values.mean(dim=1).cpu().numpy()
        if len(values) == 1:
            return Summary(means, np.zeros(1))
        errors = (values - values[0]).std(dim=1) / math.sqrt(values.shape[1])
        return Summary(means, errors.cpu().numpy())


@dataclass(frozen=True, slots=True)
class RatioOf:
    """What the examples add up to over what of them counts: a share of labels, a mean over tokens or weights."""

    counted: Counted

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _Ratios(self.counted, configs)


class _Ratios:
    def __init__(self, counted: Counted, configs: int) -> None:
        self._counted = counted
        self._sums: list[list[Tensor]] = [[] for _ in range(configs)]
        self._weights: list[Tensor] = []

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        for i, output in enumerate(outputs):
            sums, weights = self._counted(output, targets)
            self._sums[i].append(sums.double())
            if i == 0:
                self._weights.append(weights.double())

    def summary(self) -> Summary:
        weights = torch.cat(self._weights)
        sums = torch.stack([torch.cat(each) for each in self._sums])
        total, n = weights.sum(), len(weights)
        value = sums.sum(dim=1) / total
        # of a ratio, to first order: what each example adds beyond its share of the difference
        beyond = (sums - sums[0]) - (value - value[0])[:, None] * weights
        errors = (beyond.square().sum(dim=1) * (n / max(1, n - 1))).sqrt() / total
        if n == 1 and len(sums) > 1:
            errors[1:] = math.nan
        return Summary(value.cpu().numpy(), errors.cpu().numpy())


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """A loss of whole batches, as it reduces them: the mean over batches, each by the weight of what it counts."""

    loss: Callable[[Any, Tensor], Tensor]
    weigh: Callable[[Tensor], Tensor]
    """``targets -> how much of the batch counts``"""
    each: Counted | None = None
    """The same loss by example, for standard errors; ``None`` where an example has no loss of its own."""
    divisible: bool = True
    """Whether it can be taken of a part of a batch."""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _BatchLosses(self, configs, batches)


class _BatchLosses:
    def __init__(self, of: BatchLoss, configs: int, batches: int) -> None:
        self._of, self._configs = of, configs
        self._pieces = -(-GROUPS // batches) if of.divisible else 1
        self._pairs = _Ratios(of.each, configs) if of.each is not None and configs > 1 else None
        self._taken: list[Tensor] = []
        """Of each batch ``[configs + 1]``: losses times weight, and the weight."""
        self._left_out: list[Tensor] = []
        """The same of each part that a jackknife leaves out."""

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        taken = self._take(outputs, targets)
        self._taken.append(taken)
        if self._configs == 1:
            return
        if self._pairs is not None:
            self._pairs.add(outputs, targets)
            return
        n = len(targets)
        if min(self._pieces, n) < 2:
            self._left_out.append(taken)
            return
        for rest in _all_but(n, self._pieces, targets.device):
            rest_taken = self._take([_part(output, rest, n) for output in outputs], targets[rest])
            self._left_out.append(taken - rest_taken)

    def _take(self, outputs: Sequence[Any], targets: Tensor) -> Tensor:
        weight = self._of.weigh(targets).double()
        losses = torch.stack([self._of.loss(output, targets).double().reshape(()) for output in outputs])
        # where nothing counts a mean is NaN
        return torch.cat([torch.where(weight > 0.0, weight * losses, 0.0), weight.reshape(1)])

    def summary(self) -> Summary:
        whole = torch.stack(self._taken).sum(dim=0).cpu().numpy()
        with np.errstate(invalid="ignore"):
            value = whole[:-1] / whole[-1]
        if self._configs == 1:
            return Summary(value, np.zeros(1))
        if self._pairs is not None:
            return Summary(value, self._pairs.summary().se)
        groups = _in_groups(torch.stack(self._left_out).cpu().numpy())
        rests = [whole - group for group in groups if group[-1] < whole[-1]]
        return Summary(value, jackknife([rest[:-1] / rest[-1] for rest in rests], self._configs))


def _in_groups(parts: Floats) -> list[Floats]:
    """Sums of ``parts [P, ...]`` by group, at least ``GROUPS`` of about one size where there are as many parts."""
    groups = GROUPS if len(parts) >= 2 * GROUPS else len(parts)
    return [parts[g::groups].sum(axis=0) for g in range(groups)]


def jackknife(without: Sequence[Floats], configs: int) -> Floats:
    """Standard errors ``[configs]`` of the differences to the first, from the figures without each group in turn.

    NaN where there are fewer than two groups: one says nothing of the noise.
    """
    if len(without) < 2:
        return np.array([0.0, *[math.nan] * (configs - 1)])
    values = np.stack(without)
    differences = values - values[:, :1]
    spread = differences - differences.mean(axis=0)
    errors: Floats = np.sqrt((len(values) - 1) / len(values) * (spread**2).sum(axis=0))
    return errors


def _all_but(n: int, pieces: int, device: torch.device) -> Iterator[Tensor]:
    """Indices of ``n`` examples without one block of neighbours after another."""
    everything = torch.arange(n, device=device)
    for block in torch.tensor_split(everything, min(pieces, n)):
        yield torch.cat([everything[: block[0]], everything[block[-1] + 1 :]])


def _part(output: Any, index: Tensor, n: int) -> Any:
    """The examples at ``index`` of an output. Raises ``UsageError`` where a tensor does not hold one row an example."""

    def taken(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != n:
            raise UsageError(f"an output of shape {tuple(tensor.shape)} does not hold one row for each of {n} examples")
        return tensor[index.to(tensor.device)]

    return mapped(output, taken)


def divisible(loss: Callable[[Any, Tensor], Tensor], output: Any, targets: Tensor) -> str | None:
    """Why ``loss`` cannot be taken of a part of this batch, ``None`` where it can."""
    n = len(targets)
    if n < 2:
        return "its batches hold one example"
    rest = next(_all_but(n, GROUPS, targets.device))
    try:
        value = loss(_part(output, rest, n), targets[rest])
    except Exception as error:  # a user's function may raise anything
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None if isinstance(value, Tensor) and value.numel() == 1 else "of a part it is no single number"


@runtime_checkable
class SplitMetric(Protocol):
    """A metric that reduces over a split, such as those of ``torchmetrics``."""

    def update(self, preds: Any, target: Any, /) -> Any:
        """Take in one batch."""

    def compute(self) -> Any:
        """The metric over all that was taken in."""

    def reset(self) -> Any:
        """Forget it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a :class:`SplitMetric` makes of a split. Copies of it see the split without one group after another."""

    metric: SplitMetric
    scored: Callable[[Any], Any]
    """``output -> what the metric is given``"""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _Collections(self, configs, batches)


class _Collections:
    def __init__(self, of: Collected, configs: int, batches: int) -> None:
        self._of = of
        self._by_batch = batches >= GROUPS
        self._left_out = 0
        """Batches, or parts of them, that a copy has not seen so far; the copies take turns."""
        copies = 1 + (GROUPS if configs > 1 else 0)
        self._metrics = [[_fresh(of.metric) for _ in range(copies)] for _ in range(configs)]
        self._placed = False

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        n = len(targets)
        nothing = torch.zeros(0, dtype=torch.int64, device=targets.device)
        rests = [nothing] if self._by_batch else list(_all_but(n, GROUPS, targets.device))
        turns = {(self._left_out + i) % GROUPS: rest for i, rest in enumerate(rests)}
        self._left_out += len(rests)
        for copies, output in zip(self._metrics, outputs, strict=True):
            scored = self._of.scored(output)
            self._place(scored)
            for g, each in enumerate(copies, start=-1):
                if g not in turns:
                    each.update(scored, targets)
                elif len(turns[g]):
                    each.update(_part(scored, turns[g], n), targets[turns[g]])

    def _place(self, scored: Any) -> None:
        """Metrics that can move are where their tensors are."""
        if not self._placed and isinstance(scored, Tensor):
            for each in chain.from_iterable(self._metrics):
                if hasattr(each, "to"):
                    each.to(scored.device)
        self._placed = True

    def summary(self) -> Summary:
        values = np.array([[number_of(each) for each in copies] for copies in self._metrics])
        if len(values) == 1:
            return Summary(values[:, 0], np.zeros(1))
        return Summary(values[:, 0], jackknife(list(values[:, 1:].T), len(values)))


def _fresh(metric: SplitMetric) -> Any:
    new = copy.deepcopy(metric)
    new.reset()
    return new


def number_of(metric: SplitMetric) -> float:
    """What ``metric`` computes. Raises ``UsageError`` where it is not one number."""
    value = metric.compute()
    if isinstance(value, Tensor) and value.numel() != 1:
        raise UsageError(
            f"metric {type(metric).__name__} computes a tensor of shape {tuple(value.shape)}; one number is needed "
            "(in torchmetrics, say average='macro')"
        )
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"metric {type(metric).__name__} computes a {type(value).__name__}; one number is needed"
        ) from error
