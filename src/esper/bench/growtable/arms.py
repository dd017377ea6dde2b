"""What is compared on held-out worlds: end points, the best fixed schedule, rules and learned policies.

Rules and policies play twice: in the table, where they can do only what it holds, and on the same hosts for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from esper.bench.growtable import report
from esper.bench.growtable.learn import network_player
from esper.bench.growtable.score import (
    ArmScore,
    HostKey,
    HostResults,
    Norm,
    Player,
    break_even,
    by_views,
    fitting,
    fixed,
    line,
    norms,
    played,
    played_freely,
    schedules,
)
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.table import Table
from esper.leyline import Policy
from esper.tamiyo.policies import FrugalPolicy, HeuristicConfig, HeuristicPolicy, StaticPolicy
from esper.tamiyo.policies.learned import load_policy

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
    tabulated: dict[str, HostResults] = field(default_factory=dict)
    real: dict[str, HostResults] = field(default_factory=dict)

    def line(self, arm: str, found: HostResults) -> ArmScore:
        return line(arm, found, self.ends, self.rival)

    def play(self, arm: str, player: Player, policy: Policy) -> list[ArmScore]:
        self.tabulated[arm] = played(self.table, self.worlds, player)
        self.real[arm] = played_freely(self.table, self.worlds, policy)
        return [self.line(arm, self.tabulated[arm]), self.line(f"{arm}, real runs", self.real[arm])]

    def ahead(self, arm: str, rival: str, real: bool) -> str:
        mine, theirs = ((self.real if real else self.tabulated)[each] for each in (arm, rival))
        points = [mine[key].objective - theirs[key].objective for key in mine]
        return report.ahead("real runs" if real else "the table", rival, points)


@dataclass(frozen=True, slots=True)
class Scores:
    """The best fixed schedule of the training worlds, one line an arm, and remarks on saved policies."""

    schedule: Choices
    lines: list[ArmScore]
    remarks: list[str]


FITS: Final = "best schedule that fits"


def scored(table: Table, training: Sequence[str], worlds: Sequence[str], policies: Mapping[str, Path]) -> Scores:
    """Scores on held-out ``worlds``; ``policies`` are files by the names that they go by. Raises ``DataError`` for a
    file that holds no policy.
    """
    learned = {f"`{name}`": load_policy(path) for name, path in policies.items()}
    ranked = schedules(table, training)
    rival = fixed(table, worlds, ranked[0])
    all_of_it = _Field(table, worlds, norms(table, worlds), rival)
    lines = [
        all_of_it.line("oracle", {key: norm.oracle for key, norm in all_of_it.ends.items()}),
        all_of_it.line("random", {key: norm.random for key, norm in all_of_it.ends.items()}),
        all_of_it.line("static", played(table, worlds, by_views(StaticPolicy()))),
        line("best fixed schedule", rival, all_of_it.ends, None),
    ]
    all_of_it.tabulated[FITS] = fitting(table, worlds, ranked)
    lines.append(all_of_it.line(FITS, all_of_it.tabulated[FITS]))
    for name, rules in RULES.items():
        lines += all_of_it.play(name, by_views(rules), rules)
    remarks = []
    for name, saved in learned.items():
        lines += all_of_it.play(name, network_player(saved.network), saved.player(greedy=True))
        remarks.append(f"{name}: {all_of_it.ahead(name, FITS, real=False)}")
        remarks += [f"{name}: {all_of_it.ahead(name, each, real=True)}" for each in RULES]
        if cost := saved.training_macs:
            remarks.append(f"{name}: {report.paid_off(break_even(table, worlds, all_of_it.tabulated[name], cost))}")
    return Scores(ranked[0], lines, remarks)
