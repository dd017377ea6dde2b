"""What a policy is worth in each family of held-out worlds: what holds of all together need not hold of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper.bench.growtable.score import HostKey, HostResults, ahead, host_key, over_hosts
from esper.bench.growtable.table import Table
from esper.karn.stats import Interval


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """One policy on the hosts of one family, in the table."""

    policy: str
    family: str
    over: Mapping[str, Interval]
    """Rival -> points that the policy is ahead of it, paired over hosts."""
    lost: Interval
    """Points lost where all that is seen of a host is another host's, which may be of another family."""


def by_family(
    table: Table,
    worlds: Sequence[str],
    policy: str,
    results: Mapping[str, HostResults],
    rivals: Sequence[str],
    lost: Mapping[HostKey, float],
) -> list[FamilyScore]:
    """One entry a family, in the order of ``worlds``; none where there is one family, or none. ``results`` are those of
    every arm; ``lost`` is by host.
    """
    families: dict[str, list[HostKey]] = {}
    for host in (host for name in worlds for host in table.of(name)):
        if host.world.family is not None:
            families.setdefault(host.world.family, []).append(host_key(host))
    if len(families) < 2:
        return []

    def within(arm: str, keys: Sequence[HostKey]) -> HostResults:
        return {key: results[arm][key] for key in keys}

    return [
        FamilyScore(
            policy,
            family,
            {rival: ahead(within(policy, keys), within(rival, keys)) for rival in rivals},
            over_hosts({key: lost[key] for key in keys}),
        )
        for family, keys in families.items()
    ]
