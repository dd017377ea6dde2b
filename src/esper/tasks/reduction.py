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


class Figure(Protocol):
    """A number over a split."""

    def tally(self, configs: int, batches: int) -> Tally:
        """Begin a count for ``configs`` configurations over ``batches`` batches."""


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The mean of one value per example."""

    each: Callable[[Any, Tensor], Tensor]
    """``(output, targets) -> [N]``"""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`Figure`."""
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
        """See :class:`Figure`."""
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
    weigh: Callable[[Tensor], Tensor | float]
    """``targets -> how much of the batch counts``"""
    each: Counted | None = None
    """The same loss by example, for standard errors; ``None`` where an example has no loss of its own."""
    divisible: bool = True
    """Whether it can be taken of a part of a batch."""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`Figure`."""
        return _BatchLosses(self, configs, batches)


class _BatchLosses:
    def __init__(self, of: BatchLoss, configs: int, batches: int) -> None:
        self._of, self._configs = of, configs
        self._pieces = -(-GROUPS // batches) if of.divisible else 1
        self._pairs = _Ratios(of.each, configs) if of.each is not None and configs > 1 else None
        self._sums = np.zeros(configs)
        self._weight = 0.0
        self._left_out: list[tuple[Floats, float]] = []
        """Of each group: what it adds to the sums, and to the weight."""

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        sums, weight = self._taken(outputs, targets)
        self._sums += sums
        self._weight += weight
        if self._configs == 1:
            return
        if self._pairs is not None:
            self._pairs.add(outputs, targets)
            return
        n = len(targets)
        if min(self._pieces, n) < 2:
            self._left_out.append((sums, weight))
            return
        for rest in _all_but(n, self._pieces, targets.device):
            rest_sums, rest_weight = self._taken([_part(output, rest, n) for output in outputs], targets[rest])
            self._left_out.append((sums - rest_sums, weight - rest_weight))

    def _taken(self, outputs: Sequence[Any], targets: Tensor) -> tuple[Floats, float]:
        weight = float(self._of.weigh(targets))
        if weight == 0.0:
            return np.zeros(self._configs), 0.0
        return weight * np.array([float(self._of.loss(output, targets)) for output in outputs]), weight

    def summary(self) -> Summary:
        value = self._sums / self._weight if self._weight else np.full(self._configs, math.nan)
        if self._configs == 1:
            return Summary(value, np.zeros(1))
        if self._pairs is not None:
            return Summary(value, self._pairs.summary().se)
        groups = [(sums, weight) for sums, weight in _in_groups(self._left_out) if weight < self._weight]
        return Summary(
            value, jackknife([(self._sums - sums) / (self._weight - weight) for sums, weight in groups], self._configs)
        )


def _in_groups(parts: Sequence[tuple[Floats, float]]) -> Iterator[tuple[Floats, float]]:
    """At least ``GROUPS`` of about one size, where there are as many parts."""
    groups = min(len(parts), GROUPS) if len(parts) >= 2 * GROUPS else len(parts)
    for g in range(groups):
        yield sum(part[0] for part in parts[g::groups]), sum(part[1] for part in parts[g::groups])  # type: ignore[misc]


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
        """See :class:`Figure`."""
        return _Collections(self, configs, batches)


class _Collections:
    def __init__(self, of: Collected, configs: int, batches: int) -> None:
        self._of = of
        self._seen = 0
        self._by_batch = batches >= GROUPS
        copies = 1 + (GROUPS if configs > 1 else 0)
        self._metrics = [[_fresh(of.metric) for _ in range(copies)] for _ in range(configs)]

    def add(self, outputs: Sequence[Any], targets: Tensor) -> None:
        n = len(targets)
        rests = None if self._by_batch else list(_all_but(n, GROUPS, targets.device))
        for (whole, *copies), output in zip(self._metrics, outputs, strict=True):
            scored = _to_device_of(whole, copies, self._of.scored(output))
            whole.update(scored, targets)
            for g, each in enumerate(copies):
                if rests is None:
                    if g != self._seen % GROUPS:
                        each.update(scored, targets)
                elif g >= len(rests):
                    each.update(scored, targets)
                elif len(rests[g]):
                    each.update(_part(scored, rests[g], n), targets[rests[g]])
        self._seen += 1

    def summary(self) -> Summary:
        values = np.array([[number_of(each) for each in copies] for copies in self._metrics])
        if len(values) == 1:
            return Summary(values[:, 0], np.zeros(1))
        return Summary(values[:, 0], jackknife(list(values[:, 1:].T), len(values)))


def _fresh(metric: SplitMetric) -> Any:
    new = copy.deepcopy(metric)
    new.reset()
    return new


def _to_device_of(whole: Any, copies: Sequence[Any], scored: Any) -> Any:
    """Metrics that can move are where their tensors are."""
    if isinstance(scored, Tensor) and hasattr(whole, "to"):
        for each in (whole, *copies):
            each.to(scored.device)
    return scored


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
