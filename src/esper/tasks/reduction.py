"""How a figure over a split comes about, one batch at a time, under several configurations of a model.

No outputs are kept: each is taken in as soon as there is one. Each figure knows the standard error of its paired
differences: from the examples where it is made of one value per example, else from a jackknife that leaves out one
group of examples after another (Quenouille 1956; Efron and Stein 1981).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esper.leyline import UsageError
from esper.tasks.tree import part

Floats = npt.NDArray[np.float64]

GROUPS = 16
"""Fewest groups of a jackknife: of as many batches or more each goes to a group as a whole, fewer are divided."""

Counted = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""``(output, targets) -> sums [N], weights [N]``: what each example adds, and how much of it counts."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Arrays ``[configs]``: the figure, and the standard error of its paired difference to the first one's."""

    value: Floats
    se: Floats


class Tally(Protocol):
    """A figure in the making."""

    def add(self, config: int, output: Any, targets: Any, n: int) -> None:
        """Take in the output on one batch of ``n`` examples under one configuration. The first comes first."""

    def summary(self) -> Summary:
        """The figure over all that was added."""

    @property
    def rows(self) -> Sequence[Rows] | None:
        """What was added, to be put together with what others have of other batches; ``None`` where it cannot be."""


class SplitFigure(Protocol):
    """A number over a split."""

    def tally(self, configs: int, batches: int) -> Tally:
        """Begin a count for ``configs`` configurations over ``batches`` batches."""


@dataclass(frozen=True, slots=True)
class MeanOf:
    """The mean of one value per example."""

    each: Callable[[Any, Any], Tensor]
    """``(output, targets) -> [N]``"""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _Means(self.each, configs)


class Rows:
    """Numbers ``[rows, N]``, in memory that is seldom taken anew.

    Many small tensors, each made between two large outputs and kept, would lie where those were, and the next output
    would find no room there: the process would grow as if the outputs were kept.
    """

    def __init__(self, rows: int) -> None:
        self._held = torch.empty(rows, 0, dtype=torch.float64)
        self._ends = [0] * rows
        self._batches: list[int] = []

    def put(self, row: int, values: Tensor) -> None:
        """Add ``values [n]``, or one number, to a row."""
        values = values.detach().reshape(-1)
        begin, end = self._ends[row], self._ends[row] + len(values)
        if end > self._held.shape[1] or self._held.device != values.device:
            more = self._held.new_empty(len(self._ends), max(1024, 2 * end), device=values.device)
            more[:, : self._held.shape[1]] = self._held
            self._held = more
        self._held[row, begin:end] = values
        self._ends[row] = end

    def all(self) -> Tensor:
        """float64 ``[rows, N]``; every row was given as many."""
        return self._held[:, : self._ends[0]].contiguous()

    def end_batch(self) -> None:
        """All of a batch was put."""
        self._batches.append(self._ends[0] - sum(self._batches))

    def by_batch(self) -> list[Tensor]:
        """On the CPU ``[rows, n]`` of each batch, which may be none."""
        return list(torch.split(self.all().cpu(), self._batches, dim=1)) if self._batches else []

    def become(self, batches: Sequence[Tensor]) -> None:
        """Hold these batches instead; the next batch is the first to be ended."""
        self._held = torch.cat([self._held[:, :0].cpu(), *batches], dim=1)
        self._ends, self._batches = [self._held.shape[1]] * len(self._ends), []


class _Means:
    def __init__(self, each: Callable[[Any, Any], Tensor], configs: int) -> None:
        self._each = each
        self._values = Rows(configs)

    @property
    def rows(self) -> Sequence[Rows]:
        return [self._values]

    def add(self, config: int, output: Any, targets: Any, n: int) -> None:
        self._values.put(config, self._each(output, targets))

    def summary(self) -> Summary:
        values = self._values.all()
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
        self._counted, self._configs = counted, configs
        self._rows = Rows(configs + 1)
        """The sums of each configuration, and the weights."""

    @property
    def rows(self) -> Sequence[Rows]:
        return [self._rows]

    def add(self, config: int, output: Any, targets: Any, n: int) -> None:
        sums, weights = self._counted(output, targets)
        self._rows.put(config, sums)
        if config == 0:
            self._rows.put(self._configs, weights)

    def summary(self) -> Summary:
        rows = self._rows.all()
        sums, weights = rows[:-1], rows[-1]
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

    loss: Callable[[Any, Any], Tensor]
    weigh: Callable[[Any, int], Tensor]
    """``(targets, examples) -> how much of the batch counts``"""
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
        self._taken = Rows(2 * configs)
        """Of each configuration the loss times its weight, then the weights, by batch."""
        self._left_out = Rows(2 * configs)
        """The same of each part that a jackknife leaves out."""

    @property
    def rows(self) -> Sequence[Rows]:
        return [self._taken, self._left_out, *(() if self._pairs is None else self._pairs.rows)]

    def add(self, config: int, output: Any, targets: Any, n: int) -> None:
        taken = self._take(output, targets, n)
        self._put(self._taken, config, taken)
        if self._configs == 1:
            return
        if self._pairs is not None:
            self._pairs.add(config, output, targets, n)
            return
        if min(self._pieces, n) < 2:
            self._put(self._left_out, config, taken)
            return
        for rest in _all_but(n, self._pieces):
            rest_taken = self._take(part(output, rest, n), part(targets, rest, n), len(rest))
            self._put(self._left_out, config, taken - rest_taken)

    def _put(self, rows: Rows, config: int, taken: Tensor) -> None:
        rows.put(config, taken[0])
        rows.put(self._configs + config, taken[1])

    def _take(self, output: Any, targets: Any, n: int) -> Tensor:
        loss = self._of.loss(output, targets).double().reshape(())
        weight = self._of.weigh(targets, n).double().to(loss.device)
        # where nothing counts a mean is NaN
        return torch.stack([torch.where(weight > 0.0, weight * loss, 0.0), weight])

    def summary(self) -> Summary:
        taken = self._taken.all().cpu().numpy()
        whole = np.stack([taken[: self._configs].sum(axis=1), taken[self._configs :].sum(axis=1)])
        with np.errstate(invalid="ignore"):
            value = whole[0] / whole[1]
        if self._configs == 1:
            return Summary(value, np.zeros(1))
        if self._pairs is not None:
            return Summary(value, self._pairs.summary().se)
        left_out = self._left_out.all().cpu().numpy()
        groups = _in_groups(left_out.reshape(2, self._configs, -1).transpose(2, 0, 1))
        rests = [whole - group for group in groups if group[1, 0] < whole[1, 0]]
        return Summary(value, jackknife([rest[0] / rest[1] for rest in rests], self._configs))


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


def _all_but(n: int, pieces: int) -> Iterator[Tensor]:
    """Indices of ``n`` examples without one block of neighbours after another."""
    everything = torch.arange(n)
    for block in torch.tensor_split(everything, min(pieces, n)):
        yield torch.cat([everything[: block[0]], everything[block[-1] + 1 :]])


def divisible(loss: Callable[[Any, Any], Tensor], output: Any, targets: Any, n: int) -> str | None:
    """Why ``loss`` cannot be taken of a part of this batch of ``n`` examples, ``None`` where it can."""
    if n < 2:
        return "its batches hold one example"
    rest = next(_all_but(n, GROUPS))
    try:
        value = loss(part(output, rest, n), part(targets, rest, n))
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
    divisible: bool = True
    """Whether a batch can be divided by examples."""

    def tally(self, configs: int, batches: int) -> Tally:
        """See :class:`SplitFigure`."""
        return _Collections(self, configs, batches)


class _Collections:
    def __init__(self, of: Collected, configs: int, batches: int) -> None:
        self._of = of
        self._by_batch = batches >= GROUPS or not of.divisible
        groups = min(GROUPS, batches) if self._by_batch else GROUPS
        self._left_out = [0] * configs
        """Batches, or parts of them, that a copy has not seen so far; the copies take turns."""
        copies = 1 + (groups if configs > 1 else 0)
        self._metrics = [[_fresh(of.metric) for _ in range(copies)] for _ in range(configs)]
        self._groups = groups
        self._placed = False

    @property
    def rows(self) -> None:
        return None

    def add(self, config: int, output: Any, targets: Any, n: int) -> None:
        rests = [torch.zeros(0, dtype=torch.int64)] if self._by_batch else list(_all_but(n, GROUPS))
        turns = {(self._left_out[config] + i) % self._groups: rest for i, rest in enumerate(rests)}
        self._left_out[config] += len(rests)
        scored = self._of.scored(output)
        self._place(scored)
        for g, each in enumerate(self._metrics[config], start=-1):
            if g not in turns:
                each.update(scored, targets)
            elif len(turns[g]):
                each.update(part(scored, turns[g], n), part(targets, turns[g], n))

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


def by_batch(figure: SplitFigure) -> SplitFigure:
    """The same figure where examples cannot be counted: its standard error is that of whole batches."""
    if isinstance(figure, MeanOf | RatioOf):
        return RatioOf(partial(_summed, figure))
    return replace(figure, divisible=False) if isinstance(figure, Collected) else figure


def _summed(figure: MeanOf | RatioOf, output: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """A batch as if it were one example."""
    if isinstance(figure, MeanOf):
        values = figure.each(output, targets)
        return values.double().sum().reshape(1), torch.full((1,), len(values), device=values.device)
    sums, weights = figure.counted(output, targets)
    return sums.double().sum().reshape(1), weights.double().sum().reshape(1)


def _fresh(metric: SplitMetric) -> Any:
    new = copy.deepcopy(metric)
    for each in new.modules() if isinstance(new, nn.Module) else ():
        if hasattr(each, "distributed_available_fn"):
            each.__dict__["distributed_available_fn"] = (
                _nowhere  # every rank's copy sees the whole split: torchmetrics adds nothing
            )
    new.reset()
    return new


def _nowhere() -> bool:
    return False


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
