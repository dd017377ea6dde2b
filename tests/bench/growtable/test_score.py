"""Regret, its end points and break-even, on tables whose answers are known."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean

import pytest
from made_up_tables import FEW, A, B, C, made_up_host

from esper.bench.growtable.host import TableHost
from esper.bench.growtable.score import (
    HostKey,
    HostResult,
    break_even,
    by_views,
    fitting,
    fixed,
    held_part,
    line,
    norms,
    oracle_of,
    outcome_of,
    played,
    schedules,
    table_macs,
    tries_to_match,
)
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.leyline import DataError
from esper.simic.rewards import RewardConfig
from esper.tamiyo.policies import SchedulePolicy, StaticPolicy


def winners_curse(choices: Choices, number: int) -> tuple[float, float]:
    """A is truly good; on host 0 alone, B looks and is better than anything."""
    lucky = 30.0 if choices == (B,) and number == 0 else 0.0
    score = 50.0 + lucky + (5.0 if choices == (A,) else 0.0)
    return score, score


def test_the_objective_is_the_metric_less_the_rent_of_what_was_kept() -> None:
    host = made_up_host(0)
    doubled = TableHost(host.world, host.facts, 0, host.records)
    record = host.records[(A,)]
    growth = 1 + record.ending.kept_parameters / host.facts.host_parameters
    assert value(doubled, record, test=True) == pytest.approx(51.0 - 0.5 * math.log2(growth))
    assert value(doubled, record, test=False, reward=RewardConfig(rent=0.0)) == 50.0


def test_the_oracle_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    hosts = [made_up_host(n, worth=winners_curse) for n in range(2)]
    found = oracle_of(hosts)
    chosen = {key.number: choices for key, (choices, _) in found.items()}
    assert chosen == {0: (A,), 1: (B,)}, "host 1 is scored with what host 0's luck chose, and the other way round"
    on_itself = max(value(hosts[0], record, test=True) for record in hosts[0].records.values())
    assert found[HostKey("digits", 0)][1].objective < on_itself
    with pytest.raises(DataError, match="one host; an oracle needs two"):
        oracle_of(hosts[:1])


def test_regret_is_0_for_the_oracle_and_1_for_random() -> None:
    table = Table([made_up_host(n) for n in range(4)], {})
    ends = norms(table, ["digits"])
    rival = fixed(table, ["digits"], (A,))
    oracle = line("oracle", {key: norm.oracle for key, norm in ends.items()}, ends, rival)
    random = line("random", {key: norm.random for key, norm in ends.items()}, ends, rival)
    assert oracle.regret is not None and random.regret is not None
    assert oracle.regret.mean == pytest.approx(0) and random.regret.mean == pytest.approx(1)
    half = {key: HostResult((n.oracle.objective + n.random.objective) / 2, 0.0) for key, n in ends.items()}
    between = line("half", half, ends, rival)
    assert between.regret is not None and between.regret.mean == pytest.approx(0.5)
    assert between.by_world == {"digits": pytest.approx(0.5)} and between.better_than_fixed is not None
    paired = fmean((half[k].objective - rival[k].objective) for k in ends)
    scale = fmean(n.oracle.objective - n.random.objective for n in ends.values())
    assert between.better_than_fixed.mean == pytest.approx(paired / scale)


def test_a_world_in_which_nothing_can_be_won_has_no_regret_of_its_own() -> None:
    hosts = [made_up_host(n, worth=lambda choices, number: (50.0 + len(choices) / 2, 50.0)) for n in range(2)]
    ends = norms(Table(hosts, {}), ["digits"])
    found = line("random", {key: norm.random for key, norm in ends.items()}, ends, None)
    assert found.by_world == {"digits": None} and (found.regret, found.better_than_fixed) == (None, None)


def test_random_is_the_mean_over_what_was_tabulated() -> None:
    host = made_up_host(1)
    worth = fmean(value(host, record, test=True) for record in host.records.values())
    assert outcome_of(host, host.records.values()).objective == pytest.approx(worth)
    assert table_macs(Table([host], {}), ["digits"]) == sum(1000 * (1 + len(c)) for c in FEW)


def test_the_best_schedule_is_the_best_of_all() -> None:
    hosts = [made_up_host(n, worth=winners_curse) for n in range(4)]
    table = Table(hosts, {})
    means = {c: fmean(value(h, h.records[c], test=False) for h in hosts) for c in FEW}
    assert schedules(table, ["digits"]) == sorted(sorted(FEW), key=lambda choices: means[choices], reverse=True)


def test_a_schedule_plays_the_part_that_a_world_holds() -> None:
    host = made_up_host(0)
    for choices, part in (((A, B), (A, B)), ((A, C), (A,)), ((B,), (B,))):
        assert held_part(host, choices) is host.records[part]
    without = made_up_host(0, sequences=((), (C,)))
    assert held_part(without, (A, C)) is without.records[(C,)]
    assert held_part(without, (A, B)) is without.records[()]


def test_a_schedule_that_fits_is_the_first_that_a_host_holds_whole() -> None:
    free, poor = made_up_host(0), made_up_host(1, sequences=((), (B,), (C,)))
    found = fitting(Table([free, poor], {}), ["digits"], [(A, B), (A,), (C,), (B,), ()])
    assert found[HostKey("digits", 0)] == outcome_of(free, [free.records[(A, B)]])
    assert found[HostKey("digits", 1)] == outcome_of(poor, [poor.records[(C,)]])


def test_policies_walk_by_what_they_see() -> None:
    table = Table([made_up_host(0), made_up_host(1)], {})
    host = table.of("digits")[0]
    static = played(table, ["digits"], by_views(StaticPolicy()))
    assert static[HostKey("digits", 0)] == outcome_of(host, [host.records[()]])
    grown = played(table, ["digits"], by_views(SchedulePolicy([A.entry, B.entry])))
    assert grown[HostKey("digits", 0)] == outcome_of(host, [host.records[(A, B)]])


def best_of(host: TableHost, tries: int) -> float:
    """Expected test objective of the best by validation of ``tries`` sequences, by enumeration."""
    records = list(host.records.values())
    tops = [max(some, key=lambda r: value(host, r, test=False)) for some in combinations(records, tries)]
    return fmean(value(host, record, test=True) for record in tops)


def test_tries_to_match_agree_with_enumeration() -> None:
    def distinct(choices: Choices, number: int) -> tuple[float, float]:
        score = 40.0 + 3.0 * FEW.index(choices)
        return score, score - FEW.index(choices) ** 2 / 3

    host = made_up_host(0, worth=distinct)
    expected = {tries: best_of(host, tries) for tries in range(1, len(FEW) + 1)}
    for objective in (*expected.values(), 35.0, 44.0, 99.0):
        slowly = next((tries for tries, worth in expected.items() if worth >= objective - 1e-9), None)
        assert tries_to_match(host, objective - 1e-9) == slowly
    assert tries_to_match(host, 99.0) is None


def test_break_even_counts_the_searches_that_a_policy_saves() -> None:
    table = Table([made_up_host(0), made_up_host(1)], {})
    good = {HostKey("digits", n): HostResult(99.0, 100.0) for n in range(2)}
    each = fmean(1000 * (1 + len(c)) for c in FEW)
    even = break_even(table, ["digits"], good, training_macs=5e6)
    assert even.saved_per_use == pytest.approx(len(FEW) * each - 100.0)
    assert even.uses == pytest.approx(5e6 / even.saved_per_use)
    poor = {HostKey("digits", n): HostResult(0.0, 1e9) for n in range(2)}
    assert break_even(table, ["digits"], poor, training_macs=5e6).uses is None
