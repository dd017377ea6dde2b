"""Counterfactual planning and read-out, against games whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import EnvView, EvalResult, Fact, GateThresholds, Metric, Paired, SeedStage, SlotFacts, SlotView
from esper.tolaria.counterfactual import EXACT_SHAPLEY_LIMIT, Need, plan, read, shapley_values

ACCURACY = Metric("accuracy", "%", chance=10.0)
ERROR = Metric("error", "m", higher_is_better=False)
SHAPLEY = Need(shapley=True)


def view(*slots: SlotView, **fields: Any) -> EnvView:
    """An env after its fourth epoch was trained, and before it was measured."""
    return EnvView(0, 0, 3, 10, tuple(slots), ("conv3",), {}, 100, **fields)


def blended(name: str, alpha: float = 1.0, epochs: int = 1) -> SlotView:
    """A seed whose gate may pass after this epoch."""
    return SlotView(name, SeedStage.HOLDING, name, "conv3", alpha, epochs_in_stage=epochs, stage_epoch=3 - epochs)


def training(name: str, epochs: int = 2) -> SlotView:
    return SlotView(name, SeedStage.TRAINING, name, "conv3", epochs_in_stage=epochs, stage_epoch=3 - epochs)


def answer(metric: list[float], loss: list[float]) -> EvalResult:
    zeros = np.zeros((1, len(metric)))
    one, n = np.ones(1), np.full((1, len(metric)), 400)
    return EvalResult(
        np.array([metric]),
        np.array([loss]),
        zeros + 0.5,
        zeros + 0.01,
        400,
        n,
        zeros + np.nan,
        one,
        one.astype(bool),
        one,
    )


def test_a_host_without_seeds_is_evaluated_once() -> None:
    assert plan(view(SlotView("a"), SlotView("b"))).configs == ({},)


def test_each_seed_whose_worth_is_open_is_asked_for_by_itself() -> None:
    found = plan(view(blended("a"), training("b"), blended("c")))
    assert found.configs == ({}, {"a": 0.0}, {"c": 0.0}, {"b": 1.0})
    assert plan(view(blended("a"), blended("c")), Need(all_off=True)).configs[-1] == {"a": 0.0, "c": 0.0}
    assert plan(view(blended("a")), Need(all_off=True)).configs == ({}, {"a": 0.0})


LONG_AGO, PROVEN = Fact(Paired(5.0, 0.1, 9), 0), Fact(Paired(5.0, 0.1, 9), 3)


@pytest.mark.parametrize(
    ("slot", "why"),
    [
        (SlotView("a", SeedStage.FOSSILIZED, "a", "conv3", 1.0), "kept"),
        (SlotView("a", SeedStage.BLENDING, "a", "conv3", 0.3), "too_early"),
        (SlotView("a", SeedStage.GERMINATED, "a", "conv3"), "too_early"),
        (SlotView("a", SeedStage.BLENDING, "a", "conv3", 1.0, removal_cost=PROVEN), "too_early"),
        (training("a", epochs=1), "too_early"),
        (replace(training("a"), probe_gain_loss=PROVEN), "proven"),
        (replace(blended("a"), removal_cost=PROVEN, removal_cost_loss=PROVEN), "proven"),
    ],
)
def test_what_is_closed_is_not_read_and_says_why(slot: SlotView, why: str) -> None:
    found = plan(view(slot), Need(oldest=3))
    assert found.configs == ({},) and found.unread == {"a": why}


@pytest.mark.parametrize("slot", [SlotView("a", SeedStage.BLENDING, "a", "conv3", 1.0), blended("a", epochs=0)])
def test_where_the_host_depends_on_a_seed_old_evidence_is_renewed_by_a_first_look(slot: SlotView) -> None:
    for age in (None, LONG_AGO):
        found = plan(view(replace(slot, removal_cost=age)), Need(oldest=3))
        assert found.configs == ({}, {"a": 0.0}) and not found.unread
        unclear = Paired(0.0, 1.0, 20, read=0.1)
        assert found.settled(1, unclear, unclear, ACCURACY, GateThresholds())
    assert plan(view(slot), Need(oldest=None)).configs == ({},)


def settled(slot: SlotView, loss: Paired, accuracy: float = 0.0) -> bool:
    found = plan(view(slot))
    return found.settled(1, Paired(accuracy, 1.0, loss.n, loss.read), loss, ACCURACY, GateThresholds(metric=ACCURACY))


@pytest.mark.parametrize(
    ("loss", "stops"),
    [
        (Paired(1.0, 0.1, 50, read=0.25), True),
        (Paired(1.0, 0.3, 50, read=0.25), False),
        (Paired(-1.0, 0.1, 50, read=0.25), True),
        (Paired(0.0, 0.1, 50, read=0.25), False),
        (Paired(0.02, 0.1, 50, read=0.5), True),
        (Paired(0.04, 0.1, 50, read=0.5), False),
        (Paired(-0.02, 0.1, 50, read=0.75), True),
        (Paired(float("nan"), 0.1, 50, read=0.25), True),
    ],
)
def test_reading_stops_when_more_would_tell_nothing(loss: Paired, stops: bool) -> None:
    """Proven, refuted, not finite, or hopeless: the standard error of a whole reading is 0.05 at a quarter."""
    assert settled(blended("a"), loss) is stops
    behind = replace(loss, value=-loss.value)
    assert settled(training("a"), behind, accuracy=0.0) is stops


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_where_the_sign_alone_is_asked_for_all_is_read(value: float) -> None:
    """A part says one with certainty at no standard error, and may say the wrong one."""
    found, gates = plan(view(blended("a"))), GateThresholds(metric=ACCURACY)
    part = Paired(0.0, 1.0, 50, read=0.75), Paired(value, 0.1, 50, read=0.75)
    assert found.settled(1, *part, ACCURACY, gates)
    assert not found.settled(1, *part, ACCURACY, replace(gates, confidence_z=0.0))


def test_what_rewards_go_by_is_read_as_a_whole() -> None:
    found = plan(view(blended("a"), blended("b")), Need(all_off=True))
    worse, sure = Paired(-9.0, 0.1, 50, read=0.25), Paired(9.0, 0.1, 50, read=0.25)
    assert [found.settled(i, worse, sure, ACCURACY, GateThresholds()) for i in (1, 2, 3)] == [True, True, False]


def test_what_many_seeds_are_worth_is_asked_of_each_and_of_all() -> None:
    many = [blended(f"s{number}") for number in range(64)]  # of which there are 2 ** 64 subsets
    found = plan(view(*many), Need(shapley=True, all_off=True))
    assert found.configs == ({}, *({slot.slot_id: 0.0} for slot in many), {slot.slot_id: 0.0 for slot in many})
    assert not found.shapley
    assert found.whole == {65}


def test_shapley_asks_for_every_subset_up_to_the_limit() -> None:
    names = [f"s{i}" for i in range(EXACT_SHAPLEY_LIMIT)]
    assert len(plan(view(*map(blended, names)), SHAPLEY).configs) == 2**EXACT_SHAPLEY_LIMIT
    beyond = plan(view(*map(blended, [*names, "more"])), SHAPLEY)
    assert not beyond.shapley and len(beyond.configs) == 1 + 5


@pytest.mark.parametrize(("metric", "sign"), [(ACCURACY, 1.0), (ERROR, -1.0)])
def test_removal_cost_is_positive_when_the_seed_helps(metric: Metric, sign: float) -> None:
    wanted = plan(view(blended("a"), training("b")))
    result = answer([50.0, 50.0 - sign * 7.0, 50.0 + sign * 3.0], [1.0, 1.5, 0.8])
    facts = read(wanted, result, 0, metric).facts
    cost, gain = facts["a"].removal_cost, facts["b"].probe_gain
    assert cost is not None and gain is not None
    assert (cost.value, cost.se, cost.n) == (7.0, 0.5, 400)
    assert facts["a"].removal_cost_loss is not None and facts["a"].removal_cost_loss.value == 0.5
    assert gain.value == 3.0
    assert facts["b"].probe_gain_loss is not None and facts["b"].probe_gain_loss.value == pytest.approx(0.2)
    assert facts["a"].probe_gain is None and facts["b"].removal_cost is None
    assert isinstance(facts["a"], SlotFacts) and cost.read is None


def test_interaction_is_what_single_costs_leave_unexplained() -> None:
    wanted = plan(view(blended("a"), blended("b")), SHAPLEY)
    # each alone can stand in for the other: removing one costs 1, removing both 10
    readout = read(wanted, answer([60.0, 59.0, 59.0, 50.0], [1.0] * 4), 0, ACCURACY)
    assert readout.interaction == pytest.approx(8.0)
    assert readout.all_off_metric == 50.0


def by_permutations(players: list[str], worth: dict[frozenset[str], float]) -> dict[str, float]:
    """The definition: the mean marginal contribution over all orders."""
    orders = list(permutations(players))
    totals = dict.fromkeys(players, 0.0)
    for order in orders:
        for i, player in enumerate(order):
            before = frozenset(order[:i])
            totals[player] += worth[before | {player}] - worth[before]
    return {player: total / len(orders) for player, total in totals.items()}


@given(st.lists(st.floats(-100, 100), min_size=16, max_size=16), st.integers(1, 4))
def test_shapley_values_agree_with_the_mean_over_orders(values: list[float], n: int) -> None:
    players = [f"p{i}" for i in range(n)]
    subsets = [frozenset(s) for size in range(n + 1) for s in combinations(players, size)]
    worth = dict(zip(subsets, values, strict=False))
    found = shapley_values(players, worth)
    assert found == pytest.approx(by_permutations(players, worth), abs=1e-9)
    assert sum(found.values()) == pytest.approx(worth[frozenset(players)] - worth[frozenset()], abs=1e-9)


def test_shapley_values_come_from_the_evaluation() -> None:
    wanted = plan(view(blended("a"), blended("b")), SHAPLEY)
    metric = {frozenset(): 50.0, frozenset("a"): 58.0, frozenset("b"): 54.0, frozenset("ab"): 60.0}
    off = [frozenset("ab") - set(config) for config in wanted.configs]
    readout = read(wanted, answer([metric[on] for on in off], [1.0] * 4), 0, ACCURACY)
    assert readout.shapley == pytest.approx({"a": 7.0, "b": 3.0})
