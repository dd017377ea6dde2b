"""Choices that look at no host, on tables whose answers are known."""

from __future__ import annotations

from made_up_tables import A, C, made_up_host

from esper.bench.growtable.host import Node, TableHost
from esper.bench.growtable.rivals import best_ranking, blind, constant, largest_first, ucb
from esper.bench.growtable.score import HostKey, Player, outcome_of, walk
from esper.bench.growtable.sequences import Choice, Choices
from esper.bench.growtable.table import Table

D, E = Choice(0, "block0", "norm"), Choice(0, "block1", "norm")
FIRST: tuple[Choices, ...] = ((), (A,), (D,), (E,), (C,), (D, C))


def end_of(host: TableHost, player: Player) -> Node:
    return walk(host, player(host, 0))


def test_the_largest_is_taken_at_once_and_the_first_slot_of_two() -> None:
    host = made_up_host(0, FIRST)
    assert end_of(host, largest_first()).sequences == ((A,),), "conv5 is larger than norm"
    norm_first = ("norm", "conv3", "conv5", "pointwise", "depthwise5")
    assert end_of(host, constant(norm_first)).sequences == ((D, C),), "block0, then what is offered later"


def norm_is_best(choices: Choices, number: int) -> tuple[float, float]:
    score = 50.0 + 10.0 * ((D,) == choices[:1])
    return score, 100.0 - score


def test_the_best_ranking_is_chosen_by_validation() -> None:
    table = Table([made_up_host(number, FIRST, norm_is_best) for number in range(2)], {})
    ranked = best_ranking(table, ["digits"])
    assert ranked.index("norm") < ranked.index("conv5") and len(set(ranked)) == 5


def own_is_best(choices: Choices, number: int) -> tuple[float, float]:
    """On host 2 alone C is best; on the others A."""
    score = 50.0 + 20.0 * (choices == ((C,) if number == 2 else (A,)))
    return score, score


def test_a_blind_choice_is_made_without_the_host_that_it_is_scored_on() -> None:
    hosts = [made_up_host(number, worth=own_is_best) for number in range(3)]
    found = blind(Table(hosts, {}), ["digits"])
    assert found[HostKey("digits", 2)] == outcome_of(hosts[2], [hosts[2].records[(A,)]])
    pair = [made_up_host(number, worth=own_is_best) for number in (0, 2)]
    swapped = blind(Table(pair, {}), ["digits"])
    assert swapped[HostKey("digits", 0)] == outcome_of(pair[0], [pair[0].records[(C,)]])


def test_a_bandit_finds_what_is_best_elsewhere_and_never_pulls_on_the_host_it_is_scored_on() -> None:
    hosts = [made_up_host(number, worth=own_is_best) for number in range(3)]
    found = ucb(Table(hosts, {}), ["digits"])
    for host in hosts[:2]:
        # of the other two one says A and one says C
        assert found[HostKey("digits", host.number)].objective > outcome_of(host, [host.records[()]]).objective - 1
    assert found[HostKey("digits", 2)] == outcome_of(hosts[2], [hosts[2].records[(A,)]])
    few = ucb(Table(hosts, {}), ["digits"], pulls=1)
    assert few[HostKey("digits", 2)].objective in {
        outcome_of(hosts[2], [record]).objective for record in hosts[2].records.values()
    }
