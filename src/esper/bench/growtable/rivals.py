"""What a policy must beat before anybody calls it one that reads its host: choices that look at no host.

*Largest legal first* and a *constant ranking* let a blueprint germinate as soon as one is offered, in the first free
slot; the best ranking is chosen by validation on the training worlds. The best *blind choice* is the sequence that is
best by validation on the other hosts of a world, or of the family of worlds that a policy is not told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from statistics import fmean
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.bench.growtable.host import SPACE, Node, TableHost
from esper.bench.growtable.score import HostResults, Player, host_key, outcome_of, scale_of, validated, walk
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.bench.growtable.worlds import BLUEPRINTS
from esper.leyline import FactoredAction, Op


def as_soon_as_offered(rank: Callable[[TableHost, str], int]) -> Player:
    """The blueprint of the lowest ``rank`` that is legal, in the first slot in which it is; else what the table does
    without a germination.
    """

    def begin(host: TableHost, draw: int) -> Callable[[Node], FactoredAction]:
        def order(action: FactoredAction) -> tuple[int, int]:
            if action.blueprint is None or action.slot is None:
                raise RuntimeError("a germination names both")
            return rank(host, action.blueprint), SPACE.slots.index(action.slot)

        def choose(node: Node) -> FactoredAction:
            offers = [action for action in node.held if action.op is Op.GERMINATE]
            return min(offers, key=order) if offers else node.default

        return choose

    return begin


def largest_first() -> Player:
    """By parameters."""
    return as_soon_as_offered(lambda host, blueprint: -host.facts.blueprint_parameters[blueprint])


def constant(ranked: Sequence[str]) -> Player:
    """The same ranking everywhere; what a world forbids is passed over."""
    return as_soon_as_offered(lambda host, blueprint: ranked.index(blueprint))


def best_ranking(table: Table, worlds: Iterable[str]) -> tuple[str, ...]:
    """Of all rankings that of the best mean by validation over ``worlds``, each world on its own scale."""
    scaled = [(hosts, scale) for hosts in map(table.of, worlds) if (scale := scale_of(validated(hosts))) > 0]

    def mean(ranked: tuple[str, ...]) -> float:
        player = constant(ranked)
        return fmean(
            fmean(value(host, walk(host, player(host, 0)).record, test=False) for host in hosts) / scale
            for hosts, scale in scaled
        )

    return max(permutations(BLUEPRINTS), key=mean)


UCB_PULLS: Final = 500


def ucb(table: Table, worlds: Iterable[str], pulls: int = UCB_PULLS) -> HostResults:
    """Per host what a bandit achieves that knows no host: UCB1 (Auer et al. 2002) over the sequences of its family. A
    pull is a validation on a host of another number; in the end it takes what was pulled most, then what is best.
    """
    found: HostResults = {}
    for hosts in _families(table, worlds):
        choices = sorted(set.intersection(*(set(host.records) for host in hosts)))
        worths = np.array([[value(host, host.records[c], test=False) for c in choices] for host in hosts])
        numbers = np.array([host.number for host in hosts])
        for number in sorted(set(numbers.tolist())):
            arm = _ucb(worths[numbers != number], pulls)
            for host in (host for host in hosts if host.number == number):
                found[host_key(host)] = outcome_of(host, [host.records[choices[arm]]])
    return found


def _ucb(worths: npt.NDArray[np.float64], pulls: int) -> int:
    """The arm of ``worths`` (host, arm) that is chosen; rewards are scaled to the range that they have."""
    # RandomState's streams are frozen for ever
    random = np.random.RandomState(0)
    low, span = worths.min(), max(float(np.ptp(worths)), 1e-12)
    hosts, arms = worths.shape
    counts, sums = np.zeros(arms), np.zeros(arms)
    order = random.permutation(arms)
    for pull in range(pulls):
        if pull < arms:
            arm = int(order[pull])
        else:
            arm = int(np.argmax(sums / counts + np.sqrt(2 * np.log(pull) / counts)))
        counts[arm] += 1
        sums[arm] += (worths[random.randint(hosts), arm] - low) / span
    tried = np.flatnonzero(counts)
    return int(max(tried, key=lambda arm: (counts[arm], sums[arm] / counts[arm])))


def _families(table: Table, worlds: Iterable[str]) -> list[list[TableHost]]:
    families: dict[str, list[TableHost]] = {}
    for host in (host for name in worlds for host in table.of(name)):
        families.setdefault(host.world.group, []).append(host)
    return list(families.values())


def blind(table: Table, worlds: Iterable[str]) -> HostResults:
    """Per host what the sequence achieves that is best by validation on the other hosts of its family."""
    found: HostResults = {}
    for hosts in _families(table, worlds):
        for host in hosts:
            # without hosts of its number in all of them: else its own world would be the rarer one
            means = validated([other for other in hosts if other.number != host.number])
            best = max(sorted(means.keys() & host.records.keys()), key=means.__getitem__)
            found[host_key(host)] = outcome_of(host, [host.records[best]])
    return found
