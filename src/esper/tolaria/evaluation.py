"""Metric and loss of one growing model under several configurations, one output at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from esper.kasmina.growing import GrowingModel
from esper.kasmina.replay import evaluate_configs
from esper.kasmina.trial import ForwardCall
from esper.leyline import AlphaConfig
from esper.tasks.base import SplitSource
from esper.tasks.reduction import Rows, SplitFigure, Summary
from esper.tolaria.ranks import LONE, Ranks
from esper.tolaria.setup import Forward, GrowthTask

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One env under its configurations: arrays ``[configs]``; standard errors are of the difference to the first.

    The first configuration's figures are of the whole split. The others are those plus what they differ by on
    ``paired`` examples of it, which is all of them unless counterfactuals read a share alone.
    """

    metric: Floats
    loss: Floats
    metric_se: Floats
    loss_se: Floats
    examples: int
    paired: int
    passes: float
    """Work done, in passes of the first configuration over the whole split."""
    shared: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Reading:
    """How a split is read."""

    most: int | None = None
    """Most examples in a pass; ``None`` is what a batch of the split holds."""
    share: float = 1.0
    """Share of the batches that configurations other than the first are run on, evenly spaced."""

    def chosen(self, batch: int) -> bool:
        """Whether all configurations are run on batch number ``batch``: the first one always, for any share."""
        return math.floor(batch * self.share + 1e-9) > math.floor((batch - 1) * self.share + 1e-9)

    def paired(self, batches: int) -> int:
        """How many of so many batches all configurations are run on."""
        return sum(map(self.chosen, range(batches)))


class _Figure:
    """A figure of the first configuration over the split, and of all over the batches that are chosen."""

    def __init__(self, of: SplitFigure, configs: int, batches: int, reading: Reading) -> None:
        self.paired = of.tally(configs, reading.paired(batches))
        self.whole = of.tally(1, batches) if reading.share < 1.0 and configs > 1 else None

    def add(self, config: int, output: Any, targets: Any, n: int, *, chosen: bool) -> None:
        if self.whole is not None and config == 0:
            self.whole.add(0, output, targets, n)
        if chosen or self.whole is None:
            self.paired.add(config, output, targets, n)

    @property
    def rows(self) -> list[Rows] | None:
        """See :class:`esper.tasks.reduction.Tally`; of both."""
        found = [tally.rows for tally in (self.paired, self.whole) if tally is not None]
        return None if None in found else [each for rows in found for each in rows or ()]

    def summary(self) -> Summary:
        found = self.paired.summary()
        if self.whole is None:
            return found
        whole = self.whole.summary().value[0]
        values = whole + (found.value - found.value[0])
        values[0] = whole
        return Summary(values, found.se)


def evaluate(
    model: GrowingModel,
    task: GrowthTask,
    split: SplitSource,
    configs: Sequence[AlphaConfig],
    reading: Reading,
    forward: Forward,
    ranks: Ranks = LONE,
) -> Evaluation:
    """Metric and loss under each configuration; every output is taken in at once and kept nowhere.

    ``ranks`` share the batches out, and what each has is put together in their order before it is summed up: the
    figures are those of one rank, in which no example counts twice. A metric that reduces over a split itself sees all
    of it on every rank. What is given is rank 0's.
    """
    started = time.perf_counter()
    batches = split.parts(reading.most)
    figures = [_Figure(of, len(configs), batches, reading) for of in (task.metric_figure, task.loss_figure)]
    rows = [figure.rows for figure in figures]
    shares = [each for found in rows for each in found or ()] if ranks.count > 1 and None not in rows else None
    work: list[tuple[int, float, bool]] = []
    examples = paired = 0
    with split.reading(reading.most) as taken:
        for number, (inputs, targets, n) in enumerate(taken):
            chosen = reading.chosen(number)
            examples, paired = examples + n, paired + (n if chosen else 0)
            if shares is not None and not ranks.mine(number):
                continue
            asked = configs if chosen else configs[:1]
            run = evaluate_configs(model, ForwardCall(inputs, forward), asked, _taking(figures, targets, n, chosen))
            work.append((n, run.passes, run.shared))
            for each in shares or ():
                each.end_batch()
    if shares is not None:
        work = _put_together(shares, work, ranks)
    scores, losses = ranks.first(lambda: tuple(figure.summary() for figure in figures))
    return Evaluation(
        metric=scores.value,
        loss=losses.value,
        metric_se=scores.se,
        loss_se=losses.se,
        examples=examples,
        paired=paired if len(configs) > 1 else examples,
        passes=sum(passes * n / examples for n, passes, _ in work),
        shared=any(shared for *_, shared in work),
        seconds=time.perf_counter() - started,
    )


def _taking(figures: Sequence[_Figure], targets: Any, n: int, chosen: bool) -> Callable[[int, Any], None]:
    def take(config: int, output: Any) -> None:
        for figure in figures:
            figure.add(config, output, targets, n, chosen=chosen)

    return take


def _put_together(
    shares: Sequence[Rows], work: list[tuple[int, float, bool]], ranks: Ranks
) -> list[tuple[int, float, bool]]:
    """Every rank's batches, in the order of the split; and the work of all."""
    everyone = ranks.all((work, [each.by_batch() for each in shares]))
    for number, each in enumerate(shares):
        each.become(_in_turns([batches[number] for _, batches in everyone]))
    return _in_turns([its_work for its_work, _ in everyone])


def _in_turns(parts: Sequence[Sequence[T]]) -> list[T]:
    """What was shared out piece by piece."""
    pieces = sum(map(len, parts))
    return [parts[number % len(parts)][number // len(parts)] for number in range(pieces)]
