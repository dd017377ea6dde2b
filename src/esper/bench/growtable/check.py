"""Does the table tell the truth? Tabulated sequences played again, and on hosts that the table never saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from esper.bench.growtable.host import TableHost
from esper.bench.growtable.play import play
from esper.bench.growtable.sequences import Choices, name_of
from esper.bench.growtable.table import Table
from esper.leyline import UsageError

FRESH = 1000
"""Number of the first host that no table holds."""


@dataclass(frozen=True, slots=True)
class PredictionCheck:
    """One sequence: final test accuracy as the table predicts it (mean over its hosts), and on a fresh host."""

    world: str
    sequence: str
    predicted: float
    real: float
    standard_error: float
    """Of the difference: the world's pooled deviation between hosts, for one fresh host and the table's mean."""

    @property
    def within(self) -> bool:
        """Whether they differ by at most two standard errors."""
        return abs(self.predicted - self.real) <= 2 * self.standard_error


def pooled_deviation(hosts: list[TableHost]) -> float:
    """Standard deviation of the final test accuracy between hosts, pooled over all sequences that some share."""
    samples = [_ends(hosts, choices) for choices in _shared(hosts)]
    squares = sum(float(np.var(ends)) * len(ends) for ends in samples)
    return math.sqrt(squares / sum(len(ends) - 1 for ends in samples))


def _shared(hosts: list[TableHost]) -> list[Choices]:
    """Sequences that two or more hosts hold, in a fixed order."""
    held = Counter(choices for host in hosts for choices in host.records)
    return sorted(choices for choices, count in held.items() if count > 1)


def _ends(hosts: list[TableHost], choices: Choices) -> list[float]:
    """Final test accuracy on each host that holds the sequence."""
    return [host.records[choices].ending.test_metric for host in hosts if choices in host.records]


def compare(table: Table, count: int, seed: int = 0) -> Iterator[PredictionCheck]:
    """``count`` sequences drawn from those that hosts of their world share, each on a fresh host of its own."""
    if count < 1:
        raise UsageError(f"count is {count}; it must be 1 or more")
    random = np.random.default_rng(seed)
    worlds = [name for name in table.worlds if len(table.of(name)) > 1]
    shared = {name: _shared(table.of(name)) for name in worlds}
    deviations = {name: pooled_deviation(table.of(name)) for name in worlds}
    for i in range(count):
        name = worlds[int(random.integers(len(worlds)))]
        hosts = table.of(name)
        choices = shared[name][int(random.integers(len(shared[name])))]
        ends = _ends(hosts, choices)
        error = deviations[name] * math.sqrt(1 + 1 / len(ends))
        real = _really(hosts[0], FRESH + i, choices)
        yield PredictionCheck(name, name_of(choices), fmean(ends), real, error)


def _really(host: TableHost, number: int, choices: Choices) -> float:
    return dict(play(host.world, number, [choices]))[choices].ending.test_metric
