"""Metric and loss of one growing model under several configurations, one output at a time.

Configurations other than the first are read only as far as they need to be. The batches of a split are divided into
sets that are evenly spread over it, each about as large as those before it together, since a split may be sorted. The
first pass over the split runs the first configuration on all of it, and the others on the first set; then the split is
gone through again for the next set, with the first configuration and those that are not settled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from esper.kasmina.growing import GrowingModel
from esper.kasmina.joining import evaluate_batches
from esper.kasmina.trial import ForwardCall
from esper.leyline import AlphaConfig, EvalResult, Paired
from esper.tasks.base import CountedBatch, Split, SplitSource
from esper.tasks.reduction import SplitFigure, Tally
from esper.tolaria.ranks import LONE, Ranks
from esper.tolaria.setup import Forward, GrowthTask, TrainerConfig

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

DOUBLINGS: Final = 4
"""Of what is read of a split between the first look and the last, at most."""

JOINED: Final = 128
"""Examples of several batches in one pass, at most."""

JOINED_MACS: Final = 1 << 26
"""Of one configuration in such a pass, at most. Above, time goes by examples, and joining would only take memory."""

SettledConfig = Callable[[int, Paired, Paired], bool]
"""See :data:`esper.leyline.Settled`, of one env."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One env under its configurations: arrays ``[configs]``; standard errors are of the difference to the first.

    The first configuration's figures are of the whole split. The others are those plus what they differ by on
    ``paired`` examples of it. ``read`` is their share of what counterfactuals may read, NaN where it was read in one
    go.
    """

    metric: Floats
    loss: Floats
    metric_se: Floats
    loss_se: Floats
    examples: int
    paired: npt.NDArray[np.int64]
    read: Floats
    passes: float
    """Work done, in passes of the first configuration over the whole split."""
    shared: bool
    seconds: float


def side_by_side(runs: Sequence[Evaluation]) -> EvalResult:
    """Several envs as one result; those with fewer configurations are padded."""
    widest = max((len(run.metric) for run in runs), default=0)

    def table(name: str) -> Floats:
        padded = np.full((len(runs), widest), np.nan)
        for i, run in enumerate(runs):
            values = getattr(run, name)
            padded[i, : len(values)] = values
        return padded

    return EvalResult(
        metric=table("metric"),
        loss=table("loss"),
        metric_se=table("metric_se"),
        loss_se=table("loss_se"),
        examples=runs[0].examples if runs else 0,
        paired=np.nan_to_num(table("paired")).astype(np.int64),
        read=table("read"),
        passes=np.array([run.passes for run in runs]),
        shared_prefix=np.array([run.shared for run in runs], dtype=bool),
        seconds=np.array([run.seconds for run in runs]),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """How a split is read."""

    most: int | None = None
    """Most examples in a pass; ``None`` is what a batch of the split holds."""
    share: float = 1.0
    """Share of the batches that configurations other than the first are run on, evenly spaced."""
    macs: int | None = None
    """Of one example; where they are known, small batches of a split in memory may be run in one pass."""

    @classmethod
    def of(cls, split: SplitSource, config: TrainerConfig, macs: int) -> Reading:
        """As an env reads it whose host takes so many ``macs`` an example."""
        return cls(split.within(config.evaluation_batch), config.counterfactual_share, macs)

    def chosen(self, batch: int) -> bool:
        """Whether all configurations may be run on batch number ``batch``: the first one always, for any share."""
        return math.floor(batch * self.share + 1e-9) > math.floor((batch - 1) * self.share + 1e-9)

    def paired(self, batches: int) -> int:
        """How many of so many batches all configurations may be run on."""
        return sum(map(self.chosen, range(batches)))

    def sets(self, batches: int, *, stops: bool) -> list[set[int]]:
        """The chosen ones of so many batches, in sets between which reading may stop where it ``stops`` at all."""
        chosen = [batch for batch in range(batches) if self.chosen(batch)]
        stride = 2 ** min(DOUBLINGS, int(math.log2(len(chosen)))) if stops else 1
        sets, taken = [], set[int]()
        while stride:
            fresh = set(chosen[::stride]) - taken
            sets.append(fresh)
            taken |= fresh
            stride //= 2
        return sets


class _Pair:
    """Metric and loss of the first configuration and of one other, over what is read of both."""

    def __init__(self, figures: Sequence[SplitFigure], batches: int) -> None:
        self.figures = [figure.tally(2, batches) for figure in figures]
        self.examples = 0
        self.read: float | None = None

    def differences(self) -> list[Paired]:
        """Of metric and loss, to the first configuration."""
        found = [figure.summary() for figure in self.figures]
        return [
            Paired(float(each.value[1] - each.value[0]), float(each.se[1]), self.examples, self.read) for each in found
        ]


class _Evaluating:
    """What is found of each configuration, by one rank or several that share the batches out."""

    def __init__(self, task: GrowthTask, configs: Sequence[AlphaConfig], batches: int, chosen: int) -> None:
        figures = (task.metric_figure, task.loss_figure)
        self.configs = configs
        self.whole: list[Tally] = [figure.tally(1, batches) for figure in figures]
        self.pairs = [_Pair(figures, chosen) for _ in configs[1:]]
        self.open = list(range(1, len(configs)))
        self.sizes: list[int] = []
        """Examples of every batch, once the first pass is over."""
        self.work: list[tuple[int, float, bool]] = []

    def tallies(self, *, first: bool) -> list[Tally]:
        """Those that take something in when the split is gone through, the ``first`` time or again."""
        paired = [tally for number in self.open for tally in self.pairs[number - 1].figures]
        return [*(self.whole if first else ()), *paired]

    def wanted(
        self, batches: Iterable[CountedBatch], chosen: Collection[int], *, first: bool
    ) -> Iterator[tuple[CountedBatch, bool]]:
        """Batches that are to be run, and whether with those that are not settled; all are counted."""
        for i, batch in enumerate(batches):
            paired = i in chosen
            if first:
                self.sizes.append(batch[2])
            for each in self.open if paired else ():
                self.pairs[each - 1].examples += batch[2]
            if first or paired:
                yield batch, paired

    def run(
        self, model: GrowingModel, forward: Forward, group: Sequence[CountedBatch], *, first: bool, paired: bool
    ) -> None:
        """Run batches of one size: of the ``first`` pass, which the first configuration is judged by, and with those
        that are not settled where they are ``paired``."""
        numbers = [0, *(self.open if paired else ())]

        def take(batch: int, i: int, output: Any) -> None:
            _, targets, n = group[batch]
            if numbers[i] == 0 and first:
                for figure in self.whole:
                    figure.add(0, output, targets, n)
            for number in numbers[1:] if numbers[i] == 0 else (numbers[i],):
                for figure in self.pairs[number - 1].figures:
                    figure.add(int(i > 0), output, targets, n)

        calls = [ForwardCall(inputs, forward) for inputs, *_ in group]
        size = group[0][2]
        for cost in evaluate_batches(model, calls, size, [self.configs[number] for number in numbers], take):
            self.work.append((size, cost.passes, cost.shared))

    def look(self, settled: SettledConfig, most: int, ranks: Ranks) -> None:
        """Find out which configurations are settled; ``most`` is how many examples they may be read on."""
        for number in list(self.open):
            pair = self.pairs[number - 1]
            pair.read = pair.examples / most
            if settled(number, *ranks.first(pair.differences)):
                self.open.remove(number)

    def evaluation(self, seconds: float, ranks: Ranks) -> Evaluation:
        """What was found."""
        examples = sum(self.sizes)
        whole = ranks.first(lambda: [float(figure.summary().value[0]) for figure in self.whole])
        found = ranks.first(lambda: [pair.differences() for pair in self.pairs])

        def values(which: int) -> Floats:
            return np.array([whole[which], *(whole[which] + each[which].value for each in found)])

        def errors(which: int) -> Floats:
            return np.array([0.0, *(each[which].se for each in found)])

        return Evaluation(
            metric=values(0),
            loss=values(1),
            metric_se=errors(0),
            loss_se=errors(1),
            examples=examples,
            paired=np.array([examples, *(pair.examples for pair in self.pairs)]),
            read=np.array([math.nan, *(math.nan if pair.read is None else pair.read for pair in self.pairs)]),
            passes=sum(passes * n / examples for n, passes, _ in self.work),
            shared=any(shared for *_, shared in self.work),
            seconds=seconds,
        )


def evaluate(
    model: GrowingModel,
    task: GrowthTask,
    split: SplitSource,
    configs: Sequence[AlphaConfig],
    reading: Reading,
    forward: Forward,
    ranks: Ranks = LONE,
    settled: SettledConfig | None = None,
) -> Evaluation:
    """Metric and loss under each configuration; every output is taken in at once and kept nowhere.

    With ``settled`` a configuration is read until it says so, or to the end. ``ranks`` share the batches out, and what
    each has is put together in their order before it is summed up: the figures are those of one rank, in which no
    example counts twice. A metric that reduces over a split itself sees all of it on every rank, and so does a model
    that is spread over them, of which they make each pass together. What is given, and what ``settled`` is asked about,
    is rank 0's.
    """
    started = time.perf_counter()
    batches = split.parts(reading.most)
    sets = reading.sets(batches, stops=settled is not None and len(configs) > 1)
    state = _Evaluating(task, configs, batches, reading.paired(batches))
    most = _most_joined(model, split, reading, ranks)
    for number, chosen in enumerate(sets):
        if number and not state.open:
            break
        share = _Share(state, ranks, first=not number, divided=model.sharding is None)
        with split.reading(reading.most) as taken:
            wanted = (each for each in state.wanted(taken, chosen, first=not number) if share.mine())
            for group, paired in _groups(wanted, most):
                state.run(model, forward, group, first=not number, paired=paired)
                share.end_batch()
        share.put_together()
        if settled is not None and len(sets) > 1:
            state.look(settled, sum(n for i, n in enumerate(state.sizes) if reading.chosen(i)), ranks)
    return state.evaluation(time.perf_counter() - started, ranks)


def _most_joined(model: GrowingModel, split: SplitSource, reading: Reading, ranks: Ranks) -> int:
    """Most examples of several batches in one pass; 0 where each is by itself, as a user's own are, and behind a frozen
    part that is played back batch by batch."""
    played_back = model.prefix is not None and model.prefix.active
    if reading.macs is None or not isinstance(split, Split) or ranks.count > 1 or played_back:
        return 0
    return min(JOINED, JOINED_MACS // max(1, reading.macs))


def _groups(batches: Iterable[tuple[CountedBatch, bool]], most: int) -> Iterator[tuple[list[CountedBatch], bool]]:
    """Neighbouring batches of one size that are run alike, together of no more than ``most`` examples."""
    group: list[CountedBatch] = []
    alike = False
    for batch, paired in batches:
        if group and (paired is not alike or batch[2] != group[0][2]):
            yield group, alike
            group = []
        group.append(batch)
        alike = paired
        if batch[2] * (len(group) + 1) > most:  # not held until the next is read
            yield group, alike
            group = []
    if group:
        yield group, alike


class _Share:
    """What one of several ranks takes in while the split is gone through once."""

    def __init__(self, state: _Evaluating, ranks: Ranks, *, first: bool, divided: bool) -> None:
        """Where batches are not ``divided`` every rank runs all of them."""
        self.state, self.ranks = state, ranks
        rows = [tally.rows for tally in state.tallies(first=first)]
        shared = divided and ranks.count > 1 and None not in rows
        self.rows = [each for found in rows for each in found or ()] if shared else None
        self.before = [each.all() for each in self.rows or ()]
        for each in self.rows or ():
            each.become([])
        self.earlier, state.work = state.work, []
        self.turn = -1

    def mine(self) -> bool:
        """Whether the next batch is this rank's to run."""
        self.turn += 1
        return self.rows is None or self.ranks.mine(self.turn)

    def end_batch(self) -> None:
        """All of a batch was taken in."""
        for each in self.rows or ():
            each.end_batch()

    def put_together(self) -> None:
        """Have every rank's batches, in the order of the split, behind what there was before; and the work of all."""
        if self.rows is not None:
            everyone = self.ranks.all((self.state.work, [each.by_batch() for each in self.rows]))
            for number, (each, before) in enumerate(zip(self.rows, self.before, strict=True)):
                each.become([before.cpu(), *_in_turns([batches[number] for _, batches in everyone])])
            self.state.work = _in_turns([its_work for its_work, _ in everyone])
        self.state.work = [*self.earlier, *self.state.work]


def _in_turns(parts: Sequence[Sequence[T]]) -> list[T]:
    """What was shared out piece by piece."""
    pieces = sum(map(len, parts))
    return [parts[number % len(parts)][number // len(parts)] for number in range(pieces)]
