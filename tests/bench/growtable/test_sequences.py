"""What can be tabulated: names, counts, order, budgets."""

from __future__ import annotations

import pytest

from esper.bench.growtable.sequences import Choice, affordable, choices_of, name_of, pairs, singles
from esper.bench.growtable.worlds import BLUEPRINTS, HELD_OUT, SLOTS, TRAINING, WORLDS, chosen
from esper.leyline import DataError, UsageError

DIGITS, FRUGAL = WORLDS["digits"], WORLDS["digits-frugal"]


def test_there_are_twelve_worlds_in_two_groups_and_no_two_are_alike() -> None:
    assert len(WORLDS) == 12 and set(TRAINING) | set(HELD_OUT) == set(WORLDS) and len(HELD_OUT) == 4
    assert len({world.fingerprint for world in WORLDS.values()}) == 12
    assert len({world.seed(0) for world in WORLDS.values()}) == 12
    with pytest.raises(UsageError, match="unknown world 'digit'; did you mean 'digits'"):
        chosen(["digit"])


def test_names_lead_back() -> None:
    for choices in [(), *singles(DIGITS)[:5], *pairs(DIGITS, 5, singles(DIGITS))]:
        assert choices_of(name_of(choices)) == choices
    for wrong in ("", "block0-conv5", "block9-conv5-1", "block0-conv9-1", "block0-conv5-x", "block0-conv5-1+"):
        with pytest.raises(DataError, match="names no sequence"):
            choices_of(wrong)


def test_single_choices_are_all_of_slot_blueprint_and_time_and_a_few_of_them_span_the_times() -> None:
    everything = singles(DIGITS)
    assert len(everything) == len(set(everything)) == len(SLOTS) * len(BLUEPRINTS) * 6
    third = singles(DIGITS, 45)
    assert third == everything[:45]
    assert [c.epoch for (c,) in third[::15]] == [0, 5, 2]


def test_pairs_are_of_different_slots_and_more_of_them_only_add() -> None:
    alone = singles(DIGITS)
    some, more = pairs(DIGITS, 40, alone), pairs(DIGITS, 80, alone)
    assert more[:40] == some and len(set(more)) == 80
    assert all(a.slot != b.slot and a.epoch <= b.epoch for a, b in more)
    few = singles(DIGITS, 15)
    assert all({(a,), (b,)} <= set(few) for a, b in pairs(DIGITS, 20, few))
    assert len(pairs(DIGITS, 10**6, few)) == 3 * 5 * 5, "pairs of slots times blueprints of each, at one time"


def test_a_budget_leaves_out_what_it_has_no_room_for() -> None:
    assert FRUGAL.parameters == 800
    assert not affordable(FRUGAL, (Choice(0, "block0", "conv5"),)) and affordable(DIGITS, singles(DIGITS)[-1])
    alone = singles(FRUGAL)
    assert {c.blueprint for (c,) in alone} == {"norm", "pointwise", "depthwise5", "conv3"}
    both = pairs(FRUGAL, 10**6, alone)
    assert both and all(sum(FRUGAL.cost(c.blueprint) for c in pair) <= 800 for pair in both)
