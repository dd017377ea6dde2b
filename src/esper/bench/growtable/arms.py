"""What is compared on held-out worlds: end points, choices that look at no host, rules, and policies of anybody's.

Rules and policies play twice: in the table, where they can do only what it holds, and on the same hosts for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from esper.bench.growtable import report
from esper.bench.growtable.entrants import Entrant, entrant
from esper.bench.growtable.families import FamilyScore, by_family
from esper.bench.growtable.host import Node
from esper.bench.growtable.reading import ALL, Reading, readings
from esper.bench.growtable.rivals import best_ranking, blind, constant, largest_first, ucb
from esper.bench.growtable.score import (
    ArmScore,
    Duel,
    HostKey,
    HostResults,
    Norm,
    Tally,
    ahead,
    break_even,
    by_views,
    fitting,
    fixed,
    line,
    norms,
    played,
    played_freely,
    reached,
    schedules,
    walked,
)
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.table import Table
from esper.leyline import Policy
from esper.tamiyo.policies import FrugalPolicy, HeuristicConfig, HeuristicPolicy, StaticPolicy

RULES: Final = MappingProxyType[str, Policy](
    {
        "heuristic": HeuristicPolicy(),
        "heuristic from epoch 0": HeuristicPolicy(HeuristicConfig(first_epoch=0)),
        "frugal": FrugalPolicy(),
    }
)


@dataclass
class _Field:
    """Everything that was played on ``worlds`` so far, by arm."""

    table: Table
    worlds: Sequence[str]
    ends: Mapping[HostKey, Norm]
    rival: HostResults
    real_runs: bool = True
    tabulated: dict[str, HostResults] = field(default_factory=dict)
    real: dict[str, HostResults] = field(default_factory=dict)

    def add(self, arm: str, found: HostResults) -> ArmScore:
        self.tabulated[arm] = found
        return line(arm, found, self.ends, self.rival)

    def play(self, arm: str, ends: Mapping[HostKey, Node], policy: Policy | None) -> list[ArmScore]:
        lines = [self.add(arm, reached(ends))]
        if policy is not None and self.real_runs:
            self.real[arm] = played_freely(self.table, self.worlds, policy)
            lines.append(line(f"{arm}, real runs", self.real[arm], self.ends, self.rival))
        return lines

    def duel(self, arm: str, rival: str) -> Duel:
        mine, theirs = self.tabulated[arm], self.tabulated[rival]
        return Duel(arm, rival, ahead(mine, theirs), line(arm, mine, self.ends, theirs).better_than_fixed)

    def ahead(self, arm: str, rival: str) -> str:
        return report.ahead("real runs", rival, ahead(self.real[arm], self.real[rival]))


@dataclass(frozen=True, slots=True)
class Scores:
    """What was found on held-out worlds."""

    schedule: Choices
    """The best fixed schedule of the training worlds."""
    ranking: tuple[str, ...]
    """Their best constant ranking."""
    lines: list[ArmScore]
    """One an arm."""
    duels: list[Duel] = field(default_factory=list)
    families: list[FamilyScore] = field(default_factory=list)
    """One a policy and family, where there are several."""
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    """By policy."""
    remarks: list[str] = field(default_factory=list)
    """On the policies that were asked for."""
    tabulated: dict[str, HostResults] = field(default_factory=dict)
    """By arm, in the table..."""
    real: dict[str, HostResults] = field(default_factory=dict)
    """...and in real runs."""
    led: dict[str, dict[HostKey, Choices]] = field(default_factory=dict)
    """By policy: host -> the sequence that it ended with in the table."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By policy."""

    @property
    def rivals(self) -> dict[str, HostResults]:
        """What every policy is compared with in the table."""
        return {name: self.tabulated[name] for name in BESIDE}

    def whole(self, policy: str) -> Reading:
        """What it costs a policy to see all of any other host."""
        return next(each for each in self.readings[policy] if each.group == ALL)

    def rows(self) -> list[dict[str, str | int | float]]:
        """One an arm and host, for a data frame: ``pandas.DataFrame(scores.rows())``."""
        return [
            {
                "arm": arm.strip("`"),
                "runs": kind,
                "world": key.world,
                "host": key.number,
                "objective": found[key].objective,
                "macs": found[key].macs,
            }
            for kind, arms in (("table", self.tabulated), ("real", self.real))
            for arm, found in arms.items()
            for key in found
        ]


ORACLE, RANDOM, FITS, LARGEST = "oracle", "random", "best schedule that fits", "largest legal first"
RANKING, BLIND, UCB = "best constant ranking", "best blind choice", "UCB"
BESIDE: Final = (RANDOM, LARGEST, FITS, RANKING, BLIND, UCB)
"""What every policy is compared with in the table."""


def scored(
    table: Table, training: Sequence[str], worlds: Sequence[str], policies: Mapping[str, str], *, real_runs: bool = True
) -> Scores:
    """Scores on held-out ``worlds``; ``policies`` are files or ``module:Callable`` by the names that they go by, which
    play in the table, and in ``real_runs``. Raises ``DataError`` or ``UsageError`` for what is no policy.
    """
    entrants = [entrant(f"`{name}`", reference) for name, reference in policies.items()]
    # they walk through the table first, so that what cannot play is said before anything is played for real
    tallies = {one.name: Tally() for one in entrants}
    ends = {one.name: walked(table, worlds, tallies[one.name].of(one.player)) for one in entrants}
    ranked, ranking = schedules(table, training), best_ranking(table, training)
    rival = fixed(table, worlds, ranked[0])
    all_of_it = _Field(table, worlds, norms(table, worlds), rival, real_runs)
    lines = [
        all_of_it.add(ORACLE, {key: norm.oracle for key, norm in all_of_it.ends.items()}),
        all_of_it.add(RANDOM, {key: norm.random for key, norm in all_of_it.ends.items()}),
        all_of_it.add("static", played(table, worlds, by_views(StaticPolicy()))),
        line("best fixed schedule", rival, all_of_it.ends, None),
        *(all_of_it.add(name, found) for name, found in beside(table, worlds, ranked, ranking).items()),
    ]
    found = Scores(ranked[0], ranking, lines, tabulated=all_of_it.tabulated, real=all_of_it.real, tallies=tallies)
    for name, rules in RULES.items():
        lines += all_of_it.play(name, walked(table, worlds, by_views(rules)), rules)
    for one in entrants:
        _enter(all_of_it, one, ends[one.name], found)
    return found


def beside(
    table: Table, worlds: Sequence[str], ranked: Sequence[Choices], ranking: Sequence[str]
) -> dict[str, HostResults]:
    """What rivals that look at no host achieve on ``worlds``; ``ranked`` are the training worlds' schedules, the best
    first, and ``ranking`` is their best constant ranking.
    """
    return {
        FITS: fitting(table, worlds, ranked),
        LARGEST: played(table, worlds, largest_first()),
        RANKING: played(table, worlds, constant(ranking)),
        BLIND: blind(table, worlds),
        UCB: ucb(table, worlds),
    }


def rivals(table: Table, training: Sequence[str], worlds: Sequence[str]) -> dict[str, HostResults]:
    """What every policy is compared with on held-out ``worlds``."""
    ends = {key: norm.random for key, norm in norms(table, worlds).items()}
    found = beside(table, worlds, schedules(table, training), best_ranking(table, training)) | {RANDOM: ends}
    return {name: found[name] for name in BESIDE}


def _enter(everything: _Field, one: Entrant, ends: Mapping[HostKey, Node], found: Scores) -> None:
    """Everything about one of the policies that were asked for; ``ends``: where it ended in the table."""
    found.led[one.name] = {key: end.sequences[0] for key, end in ends.items()}
    found.lines.extend(everything.play(one.name, ends, one.policy))
    found.duels.extend(everything.duel(one.name, rival) for rival in BESIDE)
    found.readings[one.name] = readings(everything.table, everything.worlds, one.player)
    found.families.extend(
        by_family(
            everything.table,
            everything.worlds,
            one.name,
            everything.tabulated,
            (*BESIDE, ORACLE),
            found.whole(one.name).by_host,
        )
    )
    said = [report.refused(found.tallies[one.name]), report.read(found.readings[one.name])]
    silent = [name for name in everything.worlds if everything.table.of(name)[0].world.audition is None]
    if one.auditions and silent:
        said.append(report.unheard(silent))
    if one.policy is not None and everything.real_runs:
        said += [everything.ahead(one.name, each) for each in RULES]
    if one.training_macs:
        even = break_even(everything.table, everything.worlds, everything.tabulated[one.name], one.training_macs)
        said.append(report.paid_off(even))
    found.remarks.extend(f"{one.name}: {words}" for words in said)
