"""Counterfactual planning and read-out, against games whose answers are known."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import EnvView, EvalResult, Metric, SeedStage, SlotView
from esper.tolaria.counterfactual import EXACT_SHAPLEY_LIMIT, plan, read, shapley_values

ACCURACY = Metric("accuracy", "%", chance=10.0)
ERROR = Metric("error", "m", higher_is_better=False)


def view(*slots: SlotView) -> EnvView:
    return EnvView(0, 0, 3, 10, tuple(slots), ("conv3",), {}, 100)


def blended(name: str, alpha: float = 1.0) -> SlotView:
    return SlotView(name, SeedStage.HOLDING, seed_id=name, blueprint="conv3", alpha=alpha)


def training(name: str) -> SlotView:
    return SlotView(name, SeedStage.TRAINING, seed_id=name, blueprint="conv3")


def answer(metric: list[float], loss: list[float]) -> EvalResult:
    zeros = np.zeros((1, len(metric)))
    one = np.ones(1)
    return EvalResult(
        np.array([metric]), np.array([loss]), zeros + 0.5, zeros + 0.01, 400, 400, one, one.astype(bool), one
    )


def test_a_host_without_seeds_is_evaluated_once() -> None:
    assert plan(view(SlotView("a"), SlotView("b"))).configs == ({},)


def test_leave_one_out_all_off_and_probes() -> None:
    found = plan(view(blended("a"), training("b"), blended("c")))
    assert found.configs == ({}, {"a": 0.0}, {"c": 0.0}, {"a": 0.0, "c": 0.0}, {"b": 1.0})


def test_one_blended_seed_needs_no_separate_all_off() -> None:
    assert plan(view(blended("a"))).configs == ({}, {"a": 0.0})


def test_shapley_asks_for_every_subset_up_to_the_limit() -> None:
    names = [f"s{i}" for i in range(EXACT_SHAPLEY_LIMIT)]
    assert len(plan(view(*map(blended, names)), shapley=True).configs) == 2**EXACT_SHAPLEY_LIMIT
    beyond = plan(view(*map(blended, [*names, "more"])), shapley=True)
    assert not beyond.shapley and len(beyond.configs) == 1 + 5 + 1


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


def test_interaction_is_what_single_costs_leave_unexplained() -> None:
    wanted = plan(view(blended("a"), blended("b")))
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
    wanted = plan(view(blended("a"), blended("b")), shapley=True)
    metric = {frozenset(): 50.0, frozenset("a"): 58.0, frozenset("b"): 54.0, frozenset("ab"): 60.0}
    off = [frozenset("ab") - set(config) for config in wanted.configs]
    readout = read(wanted, answer([metric[on] for on in off], [1.0] * 4), 0, ACCURACY)
    assert readout.shapley == pytest.approx({"a": 7.0, "b": 3.0})
