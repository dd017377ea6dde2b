"""The policy ``auto``: the heuristic where the host learns, by promise where it is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from env_views import env_views, live_slot, measured, row_view
from esper.leyline import ActionOutcome, Decision, EnvView, Fact, Op, Promise, SeedStage, SlotView
from esper.tamiyo.policies import AutoConfig, AutoPolicy, HeuristicPolicy
from esper.tolaria.legality import why_illegal


def promising(slot_id: str, value: float, epoch: int = 1) -> SlotView:
    return SlotView(slot_id, beside=True, promise={"small": Promise(value, 40, 1000, epoch)})


def held_view(*slots: SlotView, **fields: Any) -> EnvView:
    """Of 10,000 parameters of the host, 100 learn."""
    given = {"epoch": 1, "max_epochs": 12, "host_parameters": 10_000, "learning_parameters": 100, **fields}
    return row_view(*slots, **given)


def decided(view: EnvView, **placing: Any) -> list[Decision]:
    (decision,) = AutoPolicy(placing=AutoConfig(**placing)).decide([view])
    return [decision, *decision.also]


@given(env_views())
def test_where_the_host_learns_it_is_the_heuristic(view: EnvView) -> None:
    # as text, in which evidence that is not a number equals itself
    assert repr(AutoPolicy().decide([view])) == repr(HeuristicPolicy().decide([view]))


def test_seeds_behind_modules_are_the_heuristics_also_where_the_host_is_held() -> None:
    view = held_view(SlotView("a"), SlotView("b"))
    assert AutoPolicy().decide([view]) == HeuristicPolicy().decide([view])


def test_first_every_place_is_auditioned_with_a_small_seed() -> None:
    empty = held_view(SlotView("a", beside=True), SlotView("b", beside=True), epoch=0)
    (only,) = decided(empty)
    assert only.action.op is Op.WAIT and not only.look
    assert only.audition == (("a", "small"), ("b", "small"))
    assert decided(empty, size=5.0)[0].audition == (("a", "middle"), ("b", "middle"))
    cramped = replace(empty, parameter_budget=60)
    assert decided(cramped, size=5.0)[0].audition == (("a", "small"), ("b", "small"))


def test_then_seeds_go_where_most_of_all_is_promised() -> None:
    places = [promising("a", 0.1), promising("b", 0.5), promising("c", 0.3), promising("d", 0.2), promising("e", -0.4)]
    found = decided(held_view(*places))
    assert [(each.action.op, each.action.slot) for each in found] == [(Op.GERMINATE, slot) for slot in "bcd"]
    assert all(each.action.incubation == "graft" and each.action.blueprint == "small" for each in found)
    assert dict(found[0].evidence)["share_of_all"] == pytest.approx(0.5 / 1.1)
    assert not found[0].look, "nobody can pass a gate after the coming epoch"
    assert [each.action.slot for each in decided(held_view(*places), share=1.0)] == ["b", "c", "d", "a"]


def test_a_promise_is_held_against_what_its_seed_takes() -> None:
    sizes = {"a": {"small": 16}, "b": {"small": 100}, "c": {"small": 16}}
    view = held_view(*(promising(name, v) for name, v in (("a", 0.3), ("b", 0.5), ("c", 0.1))))
    found = decided(replace(view, blueprint_parameters=sizes))
    assert [each.action.slot for each in found] == ["a", "c", "b"], "a and c promise more for a parameter than b"
    small = decided(replace(view, blueprint_parameters=sizes, parameter_budget=40))
    assert [each.action.slot for each in small] == ["a", "c"], "what may grow within the budget"


def test_what_is_asked_for_together_is_legal_together() -> None:
    places = [promising(name, 0.1) for name in "abcdef"]
    assert len(decided(held_view(*places, max_seeds=2), share=1.0)) == 2
    assert len(decided(held_view(*places, parameter_budget=50), share=1.0)) == 3
    vetoed = decided(held_view(*places, vetoed=frozenset("ab")), share=1.0)
    assert [each.action.slot for each in vetoed] == list("cdef")
    view = held_view(*places)
    assert all(why_illegal(view, each.action) is None for each in decided(view))


def test_nothing_is_placed_where_nothing_promises() -> None:
    (only,) = decided(held_view(promising("a", -0.1), promising("b", 0.0)))
    assert only.action.op is Op.WAIT and not only.audition


def grafted(name: str, stage: SeedStage, epochs: int, loss: float, cost: float = 5.0, **more: Any) -> SlotView:
    fields = {"alpha": 1.0, "beside": True, "epochs_in_stage": epochs, "gradient_health": Fact(1.0, 5), **more}
    seed = live_slot(name, stage, "small", **{"host_learns": False, **fields})
    return replace(
        seed,
        stage_epoch=5 - epochs,
        removal_cost=measured(cost, 0.1, epoch=5),
        removal_cost_loss=measured(loss, 0.001, epoch=5),
    )


def test_all_that_evidence_decides_is_done_at_once() -> None:
    slots = [
        grafted("a", SeedStage.TRAINING, 3, 0.1, isolation_violations=0),
        grafted("b", SeedStage.HOLDING, 2, 0.1),
        grafted("c", SeedStage.HOLDING, 2, -0.1),
        grafted("d", SeedStage.HOLDING, 2, 0.0),
    ]
    found = decided(held_view(*slots, epoch=5))
    asked = [(each.action.op, each.action.slot) for each in found]
    assert asked == [(Op.ADVANCE, "a"), (Op.FOSSILIZE, "b"), (Op.PRUNE, "c")]
    assert "better without it" in found[2].reason


def test_what_was_refused_is_not_asked_again_at_once() -> None:
    view = held_view(grafted("b", SeedStage.HOLDING, 2, 0.1), epoch=5)
    (asked,) = decided(view)
    refused = ActionOutcome(asked.action, success=False, why_not="a gate")
    assert decided(replace(view, last_outcome=refused))[0].action.op is Op.WAIT


def test_it_looks_where_a_gate_could_go_by_it() -> None:
    looks = [decided(held_view(grafted("a", SeedStage.TRAINING, epochs, 0.0), epoch=5))[0].look for epochs in range(4)]
    assert looks == [False, False, True, True]


def test_it_looks_where_that_is_a_small_part_of_all_work() -> None:
    """Of validation a pass takes 20; two seeds may prove themselves."""
    seeds = [grafted(name, SeedStage.TRAINING, 3, 0.0) for name in "ab"]
    view = held_view(*seeds, epoch=5)

    def looked(evidence: int, other: int, before: int = 0) -> bool:
        measured = before + evidence
        spent = {"validation_macs": 100, "counterfactual_macs": measured, "total_macs": measured + other}
        return decided(replace(view, spent=spent, spent_before={"counterfactual_macs": before}))[0].look

    assert looked(0, 400) and not looked(0, 399)
    assert looked(40, 800) and not looked(41, 800)
    assert looked(40, 800, before=9000) and not looked(41, 800, before=9000), "a previous run's seeds were judged by it"


def test_the_next_round_is_auditioned_anew_and_comes_only_where_the_first_was_worth_it() -> None:
    kept = live_slot("a", SeedStage.FOSSILIZED, "small", beside=True)
    view = held_view(kept, promising("b", 0.3), epoch=5, max_epochs=40, fossilized={"small": 1})
    (audition,) = decided(view)
    assert audition.audition == (("b", "small"),)
    (placed,) = decided(replace(view, slots=(kept, promising("b", 0.3, epoch=5))))
    assert (placed.action.op, placed.action.slot) == (Op.GERMINATE, "b")
    assert decided(replace(view, fossilized={}, pruned={"small": 1}))[0].audition == ()
    assert decided(replace(view, max_epochs=10))[0].audition == (), "too late to be kept"


def test_nothing_new_comes_while_seeds_are_on_their_way() -> None:
    view = held_view(grafted("a", SeedStage.TRAINING, 1, 0.0), promising("b", 0.9), epoch=5)
    assert decided(view)[0].action.op is Op.WAIT
