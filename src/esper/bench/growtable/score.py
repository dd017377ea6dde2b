"""Normalised regret on tabulated worlds, beside what it is measured against.

    regret = (oracle - policy) / (oracle - random)

of the objective (test accuracy minus rent). *Oracle* is the best tabulated sequence of a world: chosen by validation on
one half of its hosts and scored on the other, both ways round. *Random* is a tabulated sequence drawn uniformly, in
expectation. What the table does not hold is not in the oracle: a policy that adapts to its host may do better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import fmean
from typing import Final

from esper.bench.growtable.host import Node, TableHost
from esper.bench.growtable.play import play_freely
from esper.bench.growtable.record import Record
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.strata import stratified
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value, worth
from esper.karn.stats import Interval
from esper.leyline import DataError, EnvSpec, FactoredAction, Policy, UsageError
from esper.leyline.decoding import told

Player = Callable[[TableHost, int], Callable[[Node], FactoredAction]]
"""``(host, draw) -> node -> action``: a policy at the start of an episode; draws differ where it is random."""


@dataclass(frozen=True, slots=True)
class HostResult:
    """What one arm achieves on one host: mean objective on the test split, and mean MACs of a run."""

    objective: float
    macs: float


@dataclass(frozen=True, slots=True)
class Norm:
    """One host's end points: what the oracle of its world and a random sequence achieve on it."""

    oracle: HostResult
    random: HostResult


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host by world and number."""

    world: str
    number: int


HostResults = dict[HostKey, HostResult]

LEAST_TO_WIN: Final = 1.0
"""Points between oracle and random below which regret would be a ratio of noise."""


def outcome_of(host: TableHost, records: Iterable[Record]) -> HostResult:
    """Means over ``records`` of one host."""
    those = list(records)
    objective = fmean(value(host, record, test=True) for record in those)
    return HostResult(objective, fmean(record.ending.total_macs for record in those))


def oracle_of(hosts: Sequence[TableHost]) -> dict[HostKey, tuple[Choices, HostResult]]:
    """Per host, the sequence that is best by validation on the other half of its world's hosts, and its outcome.

    Raises ``DataError`` where a world has fewer than two hosts, so that there is no other half.
    """
    if len(hosts) < 2:
        raise DataError(f"world {hosts[0].world.name}: one host; an oracle needs two, to choose on and to score on")
    common = set.intersection(*(set(host.records) for host in hosts))
    found = {}
    for chosen_on, scored_on in ((hosts[::2], hosts[1::2]), (hosts[1::2], hosts[::2])):
        best = max(
            sorted(common),
            key=lambda c: fmean(value(host, host.records[c], test=False) for host in chosen_on),
        )
        for host in scored_on:
            found[host_key(host)] = best, outcome_of(host, [host.records[best]])
    return found


def norms(table: Table, worlds: Iterable[str]) -> dict[HostKey, Norm]:
    """End points of every host of ``worlds``."""
    found = {}
    for name in worlds:
        hosts = table.of(name)
        oracle = oracle_of(hosts)
        for host in hosts:
            found[host_key(host)] = Norm(oracle[host_key(host)][1], outcome_of(host, host.records.values()))
    return found


def held_part(host: TableHost, choices: Choices) -> Record:
    """What a fixed schedule does on a host: all of it, or the part that the table holds."""
    parts = (choices, choices[:1], choices[1:], ())
    return next(host.records[part] for part in parts if part in host.records)


def validated(hosts: Sequence[TableHost]) -> dict[Choices, float]:
    """Of every sequence that all of ``hosts`` hold its mean objective by validation."""
    return {
        choices: fmean(value(host, host.records[choices], test=False) for host in hosts)
        for choices in set.intersection(*(set(host.records) for host in hosts))
    }


def scale_of(means: Mapping[Choices, float]) -> float:
    """Points between the best sequence and a random one."""
    return max(means.values()) - fmean(means.values())


def schedules(table: Table, worlds: Sequence[str]) -> list[Choices]:
    """All tabulated sequences, that which leaves the least regret on average over ``worlds``, by validation, first.

    Raises ``DataError`` where nothing can be won in any of them.
    """
    scales = {name: scale_of(validated(table.of(name))) for name in worlds}
    if not any(scale > 0 for scale in scales.values()):
        raise DataError(f"training worlds {', '.join(worlds)}: every sequence ends alike, so that none can be chosen")
    candidates = sorted({choices for name in worlds for host in table.of(name) for choices in host.records})

    def mean(choices: Choices) -> float:
        return fmean(
            fmean(value(host, held_part(host, choices), test=False) for host in table.of(name)) / scales[name]
            for name in worlds
            if scales[name] > 0
        )

    return sorted(candidates, key=mean, reverse=True)


def fixed(table: Table, worlds: Iterable[str], choices: Choices) -> HostResults:
    """What a fixed schedule achieves."""
    return {host_key(h): outcome_of(h, [held_part(h, choices)]) for name in worlds for h in table.of(name)}


def fitting(table: Table, worlds: Iterable[str], ranked: Sequence[Choices]) -> HostResults:
    """What the first of ``ranked`` achieves that a host holds whole: a schedule that knows what a world forbids."""
    return {
        host_key(h): outcome_of(h, [h.records[next(choices for choices in ranked if choices in h.records)]])
        for name in worlds
        for h in table.of(name)
    }


def walked(table: Table, worlds: Iterable[str], player: Player) -> dict[HostKey, Node]:
    """Where a policy ends on every host that it walks through the table."""
    return {host_key(host): walk(host, player(host, 0)) for name in worlds for host in table.of(name)}


def reached(ends: Mapping[HostKey, Node]) -> HostResults:
    """What was achieved by ending there."""
    return {key: outcome_of(end.host, [end.record]) for key, end in ends.items()}


def played(table: Table, worlds: Iterable[str], player: Player) -> HostResults:
    """What a policy achieves that walks through the table."""
    return reached(walked(table, worlds, player))


def played_freely(table: Table, worlds: Iterable[str], policy: Policy) -> HostResults:
    """What a policy achieves on the same hosts in real runs, free to do what the table does not hold."""
    found: HostResults = {}
    for name in worlds:
        hosts = table.of(name)
        ends = play_freely(hosts[0].world, [host.number for host in hosts], policy, test=True)
        for host, end in zip(hosts, ends, strict=True):
            if end.test_metric is None:
                raise RuntimeError("scores are of the test split")
            found[host_key(host)] = HostResult(worth(host, end.test_metric, end.view.seed_parameters), end.total_macs)
    return found


def walk(host: TableHost, choose: Callable[[Node], FactoredAction]) -> Node:
    """One episode; returns its end."""
    node = host.root
    while not node.ended:
        node = node.after(choose(node))[1]
    return node


def by_views(policy: Policy) -> Player:
    """A policy that decides from views and knows nothing of the table: what is not held becomes what is.

    Raises ``UsageError`` where it asks for an audition in a world that holds none: what it waits for never comes.
    """

    def begin(host: TableHost, draw: int) -> Callable[[Node], FactoredAction]:
        policy.reset([EnvSpec(0, draw, host.number, host.world.epochs)])

        def choose(node: Node) -> FactoredAction:
            decision = policy.decide([node.view])[0]
            if decision.audition and host.world.audition is None:
                raise UsageError(
                    f"policy {told(repr(policy.name))} asks for an audition on host {host.number} of "
                    f"{host.world.name}, after {node.epoch} epochs, and that world holds none; legal: a table of "
                    "worlds with an audition, as the package's admitted.growtable (--table)"
                )
            return decision.action

        return choose

    return begin


@dataclass(slots=True)
class Tally:
    """What was asked for in the table that it does not hold, and became what it does without it."""

    asked: int = 0
    refused: int = 0
    first: str | None = None
    """In words."""

    def of(self, player: Player) -> Player:
        """``player``, counted."""

        def begin(host: TableHost, draw: int) -> Callable[[Node], FactoredAction]:
            choose = player(host, draw)

            def counted(node: Node) -> FactoredAction:
                action = choose(node)
                self.asked += 1
                if action not in node.held:
                    self.refused += 1
                    self.first = self.first or _refused(node, action)
                return action

            return counted

        return begin


def _refused(node: Node, action: FactoredAction) -> str:
    heads = (action.blueprint, action.slot, action.blend, action.alpha_target, action.tempo)
    what = " ".join([action.op.name, *(str(head) for head in heads if head is not None)])
    return f"{what}, on host {node.host.number} of {node.host.world.name} after {node.epoch} epochs"


@dataclass(frozen=True, slots=True)
class ArmScore:
    """One arm on held-out worlds. ``regret`` is points lost over points to be had, pooled over the worlds, with its
    interval over hosts, worlds its strata: in a world where nothing can be won a ratio of its own is noise. It is
    ``None`` where less than :data:`LEAST_TO_WIN` can be won on average.
    """

    arm: str
    regret: Interval | None
    by_world: Mapping[str, float | None]
    """``None`` where oracle and random are less than :data:`LEAST_TO_WIN` apart."""
    better_than_fixed: Interval | None
    """Regret of the best fixed schedule minus the arm's, paired by host; ``None`` for the schedule itself."""
    macs: float


@dataclass(frozen=True, slots=True)
class Duel:
    """Objective of a policy minus that of a rival in the table, paired over hosts."""

    policy: str
    rival: str
    points: Interval
    regret: Interval | None
    """The same in units of what can be won; ``None`` where that is too little."""


def line(arm: str, found: HostResults, ends: Mapping[HostKey, Norm], rival: HostResults | None) -> ArmScore:
    """Sum up one arm, in units of the mean distance of oracle and random over the worlds."""
    worlds = list(dict.fromkeys(key.world for key in ends))
    scale = {name: fmean(n.oracle.objective - n.random.objective for n in _within(ends, name)) for name in worlds}
    lost = {key: ends[key].oracle.objective - found[key].objective for key in ends}
    unit = fmean(scale.values())
    gains = None if rival is None else {key: found[key].objective - rival[key].objective for key in ends}
    return ArmScore(
        arm=arm,
        regret=_in_units(unit, lost),
        by_world={
            name: fmean(p for key, p in lost.items() if key.world == name) / to_win if to_win >= LEAST_TO_WIN else None
            for name, to_win in scale.items()
        },
        better_than_fixed=None if gains is None else _in_units(unit, gains),
        macs=fmean(outcome.macs for outcome in found.values()),
    )


def _in_units(unit: float, points: Mapping[HostKey, float]) -> Interval | None:
    return over_hosts({key: each / unit for key, each in points.items()}) if unit >= LEAST_TO_WIN else None


def over_hosts(points: Mapping[HostKey, float]) -> Interval:
    """Mean over the worlds of the hosts, which are its strata."""
    return stratified([key.world for key in points], list(points.values()))


def ahead(mine: HostResults, theirs: HostResults) -> Interval:
    """Objective of one arm minus another's, paired over hosts."""
    return over_hosts({key: found.objective - theirs[key].objective for key, found in mine.items()})


def _within(ends: Mapping[HostKey, Norm], world: str) -> list[Norm]:
    return [norm for key, norm in ends.items() if key.world == world]


def tries_to_match(host: TableHost, objective: float) -> int | None:
    """How many tabulated sequences, drawn at random and the best of them taken by validation, are expected to reach
    ``objective`` on the test split of this host; ``None`` where all of them together do not.
    """
    ordered = sorted(host.records.values(), key=lambda record: value(host, record, test=False), reverse=True)
    scores = [value(host, record, test=True) for record in ordered]
    n = len(scores)
    for tries in range(1, n + 1):
        # the best of the drawn has rank r when it is drawn and the others come from the ranks behind it
        total = comb(n, tries)
        expected = sum(score * (comb(n - 1 - rank, tries - 1) / total) for rank, score in enumerate(scores))
        if expected >= objective:
            return tries
    return None


@dataclass(frozen=True, slots=True)
class BreakEven:
    """When a policy has paid for its training, in MACs."""

    training_macs: float
    saved_per_use: float
    """What searching at random for as good a result costs, minus one run of the policy; means over hosts. Where no
    search reaches it, the whole table counts, so that the saving is at least this."""
    uses: float | None
    """``training_macs / saved_per_use``; ``None`` where nothing is saved."""


def break_even(table: Table, worlds: Iterable[str], found: HostResults, training_macs: float) -> BreakEven:
    """Break-even of a policy that achieves ``found`` on ``worlds``."""
    saved = []
    for host in (host for name in worlds for host in table.of(name)):
        outcome = found[host_key(host)]
        tries = tries_to_match(host, outcome.objective)
        each = fmean(record.ending.total_macs for record in host.records.values())
        saved.append((len(host.records) if tries is None else tries) * each - outcome.macs)
    mean = fmean(saved)
    return BreakEven(training_macs, mean, training_macs / mean if mean > 0 else None)


def table_macs(table: Table, worlds: Iterable[str]) -> int:
    """What tabulating ``worlds`` cost, had no beginning been shared."""
    records = (r for name in worlds for host in table.of(name) for r in host.records.values())
    return sum(record.ending.total_macs for record in records)


def host_key(host: TableHost) -> HostKey:
    """Under which what an arm achieves on a host is found."""
    return HostKey(host.world.name, host.number)
