"""The policies that need no training: legal, reproducible, and each does what its name says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import GrowthMDP, everything_helps

from env_views import GERMINATE, env_views, live_slot, row_view
from esper.leyline import (
    WAIT,
    ActionOutcome,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    Op,
    Policy,
    SeedStage,
    UsageError,
    plugins,
)
from esper.tamiyo.policies import (
    ENTRY_POINTS,
    Entry,
    HeuristicPolicy,
    RandomPolicy,
    SchedulePolicy,
    StaticPolicy,
    make_policy,
    policy_names,
)
from esper.tolaria.legality import why_illegal


def spec(seed: int = 0, env_id: int = 0) -> EnvSpec:
    return EnvSpec(env_id, 0, seed, max_epochs=30)


@given(env_views())
def test_every_decision_is_legal_and_has_a_reason(view: EnvView) -> None:
    for policy in map(make_policy, policy_names()):
        policy.reset([spec(), spec(1)])
        for decision in policy.decide([view, view]):
            assert why_illegal(view, decision.action) is None
            assert decision.reason


@pytest.mark.parametrize("name", policy_names())
def test_names_make_policies(name: str) -> None:
    policy = make_policy(name)
    assert isinstance(policy, Policy)
    assert policy.name == name


def test_the_static_policy_waits() -> None:
    assert {decision.action for _, decision in _played(StaticPolicy())} == {WAIT}


def _played(policy: Any) -> list[tuple[EnvView, Decision]]:
    world = everything_helps()
    world.play(policy)
    return world.decisions


def test_random_is_its_seeds_own_and_blind_to_its_neighbours() -> None:
    view = row_view()

    def decisions(specs: list[EnvSpec], row: int, seed: int = 0) -> list[FactoredAction]:
        policy = RandomPolicy(rate=0.5, seed=seed)
        policy.reset(specs)
        return [policy.decide([view] * len(specs))[row].action for _ in range(30)]

    alone = decisions([spec(7)], 0)
    assert decisions([spec(1, 0), spec(7)], 1) == alone
    assert decisions([spec(8)], 0) != alone
    assert decisions([spec(7)], 0, seed=1) != alone


def test_random_acts_at_its_rate_and_reaches_every_legal_op() -> None:
    view = row_view(live_slot("a", SeedStage.HOLDING, alpha=1.0), live_slot("b", SeedStage.TRAINING), *row_view().slots)
    policy = RandomPolicy(rate=0.25)
    policy.reset([spec()])
    ops = [policy.decide([view])[0].action.op for _ in range(2000)]
    assert set(ops) == set(Op)
    assert sum(op is not Op.WAIT for op in ops) / 2000 == pytest.approx(0.25, abs=0.04)


def test_random_growth_that_is_nurtured_is_kept() -> None:
    world = everything_helps()
    last = world.play(RandomPolicy(rate=0.5, nurture=True))
    assert {decision.action.op for _, decision in world.decisions} <= {Op.WAIT, Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE}
    assert sum(last.fossilized.values()) == 3


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_random_refuses_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(UsageError, match="rate is"):
        RandomPolicy(rate=rate)


@given(st.integers(0, 40))
def test_random_goes_on_from_its_state(before: int) -> None:
    view = row_view()
    policy, resumed = RandomPolicy(rate=0.7), RandomPolicy(rate=0.7)
    policy.reset([spec(3)])
    for _ in range(before):
        policy.decide([view])
    resumed.load(json.loads(json.dumps(policy.state())))
    assert [policy.decide([view]) for _ in range(5)] == [resumed.decide([view]) for _ in range(5)]


def test_a_schedule_brings_its_seeds_through() -> None:
    world = everything_helps()
    last = world.play(SchedulePolicy([{"epoch": 3, "slot": "slot1", "blueprint": "small"}]))
    assert world.done(Op.GERMINATE) == [(3, "slot1", "small")]
    assert [op for _, d in world.decisions if (op := d.action.op) is not Op.WAIT] == [
        Op.GERMINATE,
        Op.ADVANCE,
        Op.FOSSILIZE,
    ]
    assert last.fossilized == {"small": 1}


def test_a_schedule_never_forces_a_seed_that_does_not_help() -> None:
    world = GrowthMDP(row_view(epoch=0), gains={})
    world.play(SchedulePolicy([{"epoch": 3, "slot": "slot1", "blueprint": "small"}]))
    assert world.done(Op.ADVANCE) == []


def test_an_entry_that_is_not_legal_yet_waits_and_says_why() -> None:
    entries = [{"epoch": 2, "slot": "slot0", "blueprint": "small"}, {"epoch": 2, "slot": "slot0", "op": "PRUNE"}]
    world = everything_helps()
    world.play(SchedulePolicy([*entries, {"epoch": 3, "slot": "slot0", "blueprint": "large"}]))
    assert world.done(Op.GERMINATE) == [(2, "slot0", "small"), (6, "slot0", "large")]
    assert world.done(Op.PRUNE) == [(3, "slot0", None)]
    waiting = world.decisions[4][1]
    assert waiting.reason == "schedule: the entry due after epoch 3 waits, since slot slot0 is EMBARGOED, not DORMANT"


def test_an_entry_that_fails_is_asked_again_every_other_epoch() -> None:
    policy = SchedulePolicy([Entry(0, GERMINATE)])
    policy.reset([spec()])
    view = row_view()
    said = []
    for _ in range(4):
        (decision,) = policy.decide([view])
        said.append(decision.action.op)
        view = replace(view, last_outcome=ActionOutcome(decision.action, success=False, why_not="vetoed"))
    assert said == [Op.GERMINATE, Op.WAIT, Op.GERMINATE, Op.WAIT]
    (last,) = policy.decide([replace(view, last_outcome=ActionOutcome(GERMINATE, success=False, why_not="vetoed"))])
    assert last.reason == "schedule: the entry due after epoch 0 waits, since vetoed"


def test_schedules_are_json_and_back() -> None:
    entries = (Entry(2, GERMINATE), Entry(9, FactoredAction(Op.PRUNE, "slot0")))
    assert tuple(Entry.from_dict(json.loads(json.dumps(entry.to_dict()))) for entry in entries) == entries


def test_a_schedule_goes_on_from_its_state() -> None:
    policy = SchedulePolicy([Entry(0, GERMINATE), Entry(0, FactoredAction(Op.PRUNE, "slot0"))])
    policy.reset([spec()])
    policy.decide([row_view()])
    resumed = SchedulePolicy(policy.entries)
    resumed.load(json.loads(json.dumps(policy.state())))
    (decision,) = resumed.decide([row_view(live_slot("slot0", SeedStage.TRAINING))])
    assert decision.action.op is Op.PRUNE


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"epoch": -1, "slot": "slot0"}, "epoch is -1; a whole number from 0 is needed"),
        ({"slot": "slot0"}, "epoch is None"),
        ({"epoch": 1, "blueprnt": "small"}, "did you mean 'blueprint'"),
        ({"epoch": 1, "op": "GERMINAT"}, "did you mean 'GERMINATE'"),
        ({"epoch": 1, "blend": "liner"}, "did you mean 'linear'"),
        ({"epoch": 1, "slot": "slt0", "blueprint": "small"}, "did you mean 'slot0'"),
        ({"epoch": 1, "slot": "slot0", "blueprint": "smal"}, "did you mean 'small'"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        everything_helps().play(SchedulePolicy([entry]))


def test_unknown_policies_and_options_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'heuristic'"):
        make_policy("heuristc")
    with pytest.raises(UsageError, match="did you mean 'rate'"):
        make_policy("random", rat=1)
    with pytest.raises(UsageError, match="cannot import"):
        make_policy("esper.nowhere:Policy")
    with pytest.raises(UsageError, match="made a Fraction"):
        make_policy("fractions:Fraction")


def test_third_parties_add_policies_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("theirs", "esper.tamiyo.policies:StaticPolicy", ENTRY_POINTS)])
    monkeypatch.setattr(plugins, "entry_points", points.select)
    assert policy_names() == (
        "static",
        "random",
        "nurtured",
        "schedule",
        "heuristic",
        "frugal",
        "promise",
        "auto",
        "esper-v1",
        "esper-v2",
        "theirs",
    )
    assert isinstance(make_policy("theirs"), StaticPolicy)
    assert isinstance(make_policy("heuristic"), HeuristicPolicy)


def test_a_policy_of_ones_own_is_given_by_module_and_attribute() -> None:
    policy = make_policy("esper.tamiyo.policies:RandomPolicy", rate=1.0)
    assert isinstance(policy, RandomPolicy)
    assert policy.rate == 1.0
