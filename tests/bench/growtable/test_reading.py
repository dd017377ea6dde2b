"""Who reads loses by seeing another host, and who does not loses nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_up_tables import A, B, C, Worth, made_up_host

from esper.bench.growtable import report
from esper.bench.growtable.host import Node, TableHost
from esper.bench.growtable.learn import Sights
from esper.bench.growtable.reading import ALL, GROUPS, MEASURED, SCOPES, SIZES, Reading, disguised, readings
from esper.bench.growtable.score import Player
from esper.bench.growtable.sequences import Choices
from esper.bench.growtable.table import Table
from esper.bench.growtable.tabular import value
from esper.leyline import WAIT, FactoredAction
from esper.simic.vectorized import fresh_network


def b_where_odd(choices: Choices, number: int) -> tuple[float, float]:
    """B is right on hosts of odd number, C on the others."""
    score = 50.0 + (20.0 if choices == ((B,) if number % 2 else (C,)) else 0.0)
    return score, score


def telling(number: int, worth: Worth = b_where_odd) -> TableHost:
    """A host whose metric says after an epoch what is right on it."""
    host = made_up_host(number, ((), (A,), (B,), (C,)), worth)
    for record in host.records.values():
        record.steps["metric"] += 50.0 * (number % 2)
    return host


def once(rule: Callable[[Node], FactoredAction]) -> Player:
    return lambda host, draw: lambda node: action if (action := rule(node)) in node.held else node.default


def reader(node: Node) -> FactoredAction:
    if node.epoch not in (2, 4):
        return WAIT
    high = node.view.metric is not None and node.view.metric > 40.0
    return B.action if high else C.action


PLAIN = made_up_host(0)
RENT = value(PLAIN, PLAIN.records[(B,)], test=True) - value(PLAIN, PLAIN.records[(C,)], test=True)
"""Points that C costs more than B."""
TABLE = Table([telling(number) for number in range(8)], {})


def of(found: list[Reading], group: str) -> Reading:
    return next(each for each in found if each.group == group and each.scope == "any host")


def test_a_policy_that_reads_loses_by_what_it_reads_and_by_nothing_else() -> None:
    found = readings(TABLE, ["digits"], once(reader))
    assert len(found) == (len(GROUPS) - 1) * len(SCOPES), "no place was auditioned"
    for group in ("metric and losses", ALL):
        one = of(found, group)
        assert one.reads and 0 < one.changed < one.episodes == 40
        assert one.lost.mean == pytest.approx(20.0 * one.changed / one.episodes, abs=1.0)
    for group in ("evidence of seeds", "sizes and budget"):
        assert (of(found, group).changed, of(found, group).lost.mean, of(found, group).reads) == (0, 0.0, False)
    assert found == readings(TABLE, ["digits"], once(reader)), "permutations are seeded"
    assert "It reads metric and losses (any host), metric and losses (of its world)" in report.read(found)
    assert "| x | metric and losses | any host |" in report.reading_test({"x": found})


def test_a_constant_loses_nothing_and_is_called_one() -> None:
    found = readings(TABLE, ["digits"], once(lambda node: B.action))
    assert {(each.changed, each.lost.mean, each.reads) for each in found} == {(0, 0.0, False)}
    assert "it is a constant." in report.read(found)
    assert report.reading_test({"x": found}).count("| a constant |") == len(found)


def test_one_that_looks_in_vain_is_not_called_a_reader() -> None:
    """What it does depends on what it sees, and is worth the same either way."""

    def level(choices: Choices, number: int) -> tuple[float, float]:
        # the rent of C's seed is made good, so that objectives are the same
        return (50.0, 50.0) if choices != (C,) else (50.0 + RENT, 50.0 + RENT)

    hosts = [telling(number, level) for number in range(8)]
    one = of(readings(Table(hosts, {}), ["digits"], once(reader)), ALL)
    assert one.changed > 0 and one.lost.mean == pytest.approx(0.0) and not one.reads


def test_a_group_is_taken_whole_from_the_other_host_and_the_rest_stays() -> None:
    mine, other = (telling(number).root.after(WAIT)[1] for number in (0, 1))
    seen = disguised(mine, other.view, MEASURED)
    assert seen.view.metric == other.view.metric != mine.view.metric
    assert seen.view.metric_history == other.view.metric_history
    assert (seen.view.slots, seen.held) == (mine.view.slots, mine.held)
    sights = Sights(fresh_network(0).config)
    shown, own = (sights.of([node]).observation["host"] for node in (seen, mine))
    assert not torch.equal(shown, own), "a network sees it, too"
    assert disguised(mine, other.view, SIZES).view == mine.view
