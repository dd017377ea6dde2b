"""Admission: is there anything to win in a family of worlds for a policy that reads its host?

A family is admitted where

(a) its hosts have different best choices: what is best on the other hosts of the same world is better than the best
    blind choice, which knows the family alone,
(b) something that a policy sees before the choice predicts which: what it sees, permuted between hosts, wins as much in
    at most a twentieth of the permutations,
(c) the *blind price* is above 0 beyond doubt: a reader's choice, less the best blind choice.

Choices are made by validation and scored by test: the blind one on all hosts, which does it a favour, all others on
hosts of other numbers, so that in what they are chosen on no world is rarer than another. Intervals are those of a
stratified sample, worlds its strata. The *reader* is as plain as can be: it splits hosts by one thing that they show
(which one, is chosen on other hosts, too), and takes what is best in each part. What it wins is a lower bound of what
reading can win; (a) is an upper one, of what knowing the world can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from esper.bench.growtable.host import Node, TableHost
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.strata import stratified
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.karn.stats import Interval
from esper.leyline import DataError, EnvView, Op

PERMUTATIONS: Final = 99
LEVEL: Final = 0.05
LEAST_HOSTS: Final = 3
"""Of every world: one is judged, and of the others what is chosen on one must hold on another."""

Grid = npt.NDArray[np.float64]


def _promises(view: EnvView) -> list[float]:
    return [max((each.value for each in slot.promise.values()), default=float("nan")) for slot in view.slots]


def _place(view: EnvView) -> float:
    promises = _promises(view)
    return -1.0 if any(map(np.isnan, promises)) else float(np.argmax(promises))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


SHOWN: Final[Mapping[str, Callable[[EnvView], float]]] = {
    "metric": lambda view: _number(view.metric),
    "loss": lambda view: _number(view.loss),
    "training loss": lambda view: _number(view.train_loss),
    "host's parameters": lambda view: float(view.host_parameters),
    "epochs": lambda view: float(view.max_epochs),
    "greatest promise": lambda view: max(_promises(view)),
    "place of the greatest promise": _place,
}
"""What a policy may go by, before anything has germinated."""
PLACES: Final = frozenset({"place of the greatest promise"})
"""Of these each value is a part of its own; of the others, what is below and above a threshold."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What was found out about a family."""

    family: str
    best: Mapping[str, Choices]
    """World -> the choice that is best on its hosts."""
    hosts: int
    differs: Interval
    """Objective of what is best on the other hosts of the same world, less that of the best blind choice."""
    shown: str
    """What the reader goes by, on most hosts."""
    p: float
    """Share of the permutations in which it wins as much."""
    price: Interval
    """Objective of the reader's choice, less that of the best blind choice."""

    @property
    def refusals(self) -> list[str]:
        """Which conditions do not hold."""
        held = {
            "(a) best choices do not differ beyond doubt": _above(self.differs),
            "(b) nothing that is seen predicts them": self.p <= LEVEL,
            "(c) the blind price may be 0": _above(self.price),
        }
        return [condition for condition, holds in held.items() if not holds]

    @property
    def admitted(self) -> bool:
        """Whether all hold."""
        return not self.refusals


def _above(found: Interval) -> bool:
    return found.low is not None and found.low > 0


@dataclass(frozen=True, slots=True)
class _Family:
    """Hosts ``[H]`` and the choices ``[C]`` that all of them hold."""

    worlds: list[str]
    choices: list[Choices]
    validation: Grid
    test: Grid
    shown: Mapping[str, Grid]


def admission(family: str, table: Table) -> Admission:
    """Judge the worlds of ``table`` that belong to ``family``. Raises ``DataError`` for too few hosts."""
    hosts = [host for name in table.worlds for host in table.of(name) if host.world.group == family]
    kinds = Counter(host.world.name for host in hosts)
    if min(kinds.values(), default=0) < LEAST_HOSTS:
        raise DataError(f"family {family}: not judged, {len(hosts)} hosts; {LEAST_HOSTS} of every world are needed")
    found = _family(hosts)
    everyone = np.arange(len(hosts))
    numbers = np.array([host.number for host in hosts])
    others = [np.flatnonzero(numbers != number) for number in numbers]
    blind = found.test[:, _best(found, everyone)]
    kin = [np.array([j for j in others[i] if found.worlds[j] == found.worlds[i]]) for i in everyone]
    knowing = np.array([found.test[i, _best(found, kin[i])] for i in everyone])
    reading, names = _read(found, others)
    price = float(np.mean(reading - blind))
    # RandomState's streams are frozen for ever
    random = np.random.RandomState(0)
    chance = []
    for _ in range(PERMUTATIONS):
        order = random.permutation(len(hosts))
        permuted = {name: values[order] for name, values in found.shown.items()}
        other = _Family(found.worlds, found.choices, found.validation, found.test, permuted)
        chance.append(float(np.mean(_read(other, others)[0] - blind)))
    return Admission(
        family=family,
        best={name: found.choices[_best(found, np.flatnonzero(np.array(found.worlds) == name))] for name in kinds},
        hosts=len(hosts),
        differs=stratified(found.worlds, (knowing - blind).tolist()),
        shown=Counter(names).most_common(1)[0][0],
        p=(1 + sum(each >= price for each in chance)) / (1 + PERMUTATIONS),
        price=stratified(found.worlds, (reading - blind).tolist()),
    )


def _family(hosts: Sequence[TableHost]) -> _Family:
    choices = sorted(set.intersection(*(set(host.records) for host in hosts)))

    def grid(test: bool) -> Grid:
        return np.array([[value(host, host.records[each], test=test) for each in choices] for host in hosts])

    views = [_before(host).view for host in hosts]
    shown = {name: np.array([read(view) for view in views]) for name, read in SHOWN.items()}
    told = {name: values for name, values in shown.items() if not np.isnan(values).any() and len(set(values)) > 1}
    return _Family([host.world.name for host in hosts], choices, grid(False), grid(True), told)


def _before(host: TableHost) -> Node:
    """Where something may germinate for the first time."""
    node = host.root
    while not any(action.op is Op.GERMINATE for action in node.held):
        if node.ended:
            raise DataError(f"world {host.world.name}: nothing ever germinates on host {host.number}")
        node = node.held[node.default]
    return node


def _best(found: _Family, those: npt.NDArray[np.int64]) -> int:
    """The choice that is best on those hosts, by validation."""
    return int(np.argmax(found.validation[those].mean(axis=0)))


def _read(found: _Family, others: Sequence[npt.NDArray[np.int64]]) -> tuple[Grid, list[str]]:
    """Per host the reader's objective by test, and what it goes by there."""
    ends, names = [], []
    for i, rest in enumerate(others):
        if not found.shown:
            ends.append(found.test[i, _best(found, rest)])
            names.append("nothing")
            continue
        name = max(found.shown, key=lambda each: _worth(found, each, rest))
        ends.append(found.test[i, _choice(found, name, rest, found.shown[name][i])])
        names.append(name)
    return np.array(ends), names


def _worth(found: _Family, name: str, those: npt.NDArray[np.int64]) -> float:
    """What going by ``name`` is worth on those hosts, each of them read by what the others of them say."""
    values = found.shown[name]
    return float(np.mean([found.validation[i, _choice(found, name, those[those != i], values[i])] for i in those]))


def _choice(found: _Family, name: str, those: npt.NDArray[np.int64], value: float) -> int:
    """The best choice on those hosts that are in the same part as one that shows ``value``."""
    values = found.shown[name][those]
    if name in PLACES:
        alike = those[values == value]
        return _best(found, alike if len(alike) else those)
    best, chosen = -np.inf, _best(found, those)
    levels = np.unique(values)
    for threshold in (levels[:-1] + levels[1:]) / 2:
        low, high = those[values < threshold], those[values >= threshold]
        gains = [found.validation[part].mean(axis=0) for part in (low, high)]
        worth = float(gains[0].max() * len(low) + gains[1].max() * len(high))
        if worth > best:
            best, chosen = worth, int(np.argmax(gains[0 if value < threshold else 1]))
    return chosen
