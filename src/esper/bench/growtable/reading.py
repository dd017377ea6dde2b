"""Does a policy read its host? What it sees of it is taken from another host, and what that costs is measured.

A policy plays once as it is, then with a group of its observations permuted between hosts: in every epoch it sees what
another host showed in that epoch under the same policy. Hosts change places with any of worlds of the same length, and
within their world. What a policy did itself (stages and seeds of the slots, its last action), the epoch, and what is
legal stay its own. One that loses nothing is a constant there, however much it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from esper.bench.growtable.host import Node, TableHost
from esper.bench.growtable.record import FACTS
from esper.bench.growtable.score import HostKey, Player, host_key, outcome_of, over_hosts, walk
from esper.bench.growtable.table import Table
from esper.karn.stats import Interval
from esper.leyline import EnvView, FactoredAction


@dataclass(frozen=True, slots=True)
class Group:
    """Fields of a view, and of each of its slots."""

    host: tuple[str, ...] = ()
    slot: tuple[str, ...] = ()

    def swapped(self, view: EnvView, other: EnvView) -> EnvView:
        """``view`` with these fields as ``other`` has them."""
        slots = tuple(
            replace(mine, **{name: getattr(theirs, name) for name in self.slot})
            for mine, theirs in zip(view.slots, other.slots, strict=True)
        )
        taken: dict[str, Any] = {name: getattr(other, name) for name in self.host}
        return replace(view, slots=slots, **taken)


MEASURED: Final = Group(host=("metric", "loss", "train_loss", "metric_history", "loss_history"))
EVIDENCE: Final = Group(slot=("metric_at_germination", *FACTS, "isolation_violations", "blocked_by"))
SIZES: Final = Group(host=("host_parameters", "blueprint_parameters", "parameter_budget"))
PROMISE: Final = Group(slot=("promise",))
PROMISES: Final = "what places promise"
ALL: Final = "all of these"
GROUPS: Final[Mapping[str, Group]] = MappingProxyType(
    {
        "metric and losses": MEASURED,
        "evidence of seeds": EVIDENCE,
        "sizes and budget": SIZES,
        PROMISES: PROMISE,
        ALL: Group(MEASURED.host + SIZES.host, EVIDENCE.slot + PROMISE.slot),
    }
)
PERMUTATIONS: Final = 5
SCOPES: Final[Mapping[str, Callable[[TableHost], object]]] = MappingProxyType(
    {
        "any host": lambda host: host.world.epochs,
        "of its world": lambda host: host.world.name,
    }
)
"""Between which hosts observations change places: those that are alike by this."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What it costs a policy to see ``group`` of another host."""

    group: str
    scope: str
    lost: Interval
    """Objective lost, in points: means over the permutations, interval over hosts, worlds its strata."""
    changed: int
    """Episodes in which it did anything else than it does as it is."""
    episodes: int
    by_host: Mapping[HostKey, float]
    """Objective lost on each host, the mean over the permutations."""

    @property
    def reads(self) -> bool:
        """Whether it loses by it beyond doubt."""
        return self.lost.low is not None and self.lost.low > 0


def readings(table: Table, worlds: Iterable[str], player: Player, count: int = PERMUTATIONS) -> list[Reading]:
    """One entry a scope and group that is shown anywhere, of ``count`` permutations each; repeatable."""
    hosts = [host for name in worlds for host in table.of(name)]
    shown = [_shown(host, player) for host in hosts]
    return [
        _reading(hosts, shown, player, (scope, group), _donors(hosts, SCOPES[scope], count))
        for scope in SCOPES
        for group in GROUPS
        if group != PROMISES or any(host.world.audition for host in hosts)
    ]


def _shown(host: TableHost, player: Player) -> list[Node]:
    """Every state that the policy, as it is, leads the host through."""
    choose = player(host, 0)
    nodes: list[Node] = []

    def watched(node: Node) -> FactoredAction:
        nodes.append(node)
        return choose(node)

    end = walk(host, watched)
    return [*nodes, end]


def _donors(hosts: Sequence[TableHost], alike: Callable[[TableHost], object], count: int) -> list[list[int]]:
    """``count`` times, for each host the index of that whose observations it sees, which is never its own."""
    groups: dict[object, list[int]] = {}
    for i, host in enumerate(hosts):
        groups.setdefault(alike(host), []).append(i)
    # RandomState's streams are frozen for ever
    random = np.random.RandomState(0)
    drawn = []
    for _ in range(count):
        donors = [0] * len(hosts)
        for members in groups.values():
            order = members
            while any(mine == theirs for mine, theirs in zip(members, order, strict=True)):
                order = [members[i] for i in random.permutation(len(members))]
            for mine, theirs in zip(members, order, strict=True):
                donors[mine] = theirs
        drawn.append(donors)
    return drawn


def _reading(
    hosts: Sequence[TableHost],
    shown: Sequence[Sequence[Node]],
    player: Player,
    named: tuple[str, str],
    drawn: Sequence[Sequence[int]],
) -> Reading:
    scope, group = named
    lost: dict[HostKey, float] = {}
    changed = 0
    for i, host in enumerate(hosts):
        own = outcome_of(host, [shown[i][-1].record]).objective
        ends = [walk(host, _misled(player(host, 0), shown[donors[i]], GROUPS[group])) for donors in drawn]
        changed += sum(end.sequences != shown[i][-1].sequences for end in ends)
        # differences first: their mean is exactly 0 where nothing changed
        lost[host_key(host)] = fmean(own - outcome_of(host, [end.record]).objective for end in ends)
    return Reading(group, scope, over_hosts(lost), changed, len(hosts) * len(drawn), lost)


def _misled(
    choose: Callable[[Node], FactoredAction], donor: Sequence[Node], group: Group
) -> Callable[[Node], FactoredAction]:
    """``choose``, which is shown ``group`` as the donor had it after as many epochs."""
    return lambda node: choose(disguised(node, donor[node.epoch].view, group))


def disguised(node: Node, view: EnvView, group: Group) -> Node:
    """The same state, in which ``group`` looks as in ``view``."""
    other = Node(node.host, node.sequences, node.epoch)
    other.view = group.swapped(node.view, view)
    other.held = node.held
    return other
