from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from recorded import GrowthMDP, everything_helps

from env_views import PARAMETERS, env_views, live_slot, measured, row_view
from esper.kasmina import blueprints
from esper.kasmina.layout import Layout
from esper.leyline import WAIT, ActionOutcome, EnvView, Fact, FactoredAction, Op, SeedStage, SlotView
from esper.tamiyo.policies import FrugalPolicy, HeuristicPolicy, heuristic
from esper.tasks import task_names


def decide(view: EnvView) -> tuple[FactoredAction, str, dict[str, float]]:
    (decision,) = HeuristicPolicy().decide([view])
    return decision.action, decision.reason, dict(decision.evidence)


def holding(value: float, loss: float, se: float = 0.1, epochs: int = 2) -> SlotView:
    return live_slot(
        "slot0",
        SeedStage.HOLDING,
        alpha=1.0,
        epochs_in_stage=epochs,
        gradient_health=Fact(1.0, 3),
        removal_cost=measured(value, se),
        removal_cost_loss=measured(loss, se / 10),
    )


def training(loss: float, se: float = 0.01, epochs: int = 3, **fields: object) -> SlotView:
    defaults: dict[str, object] = {
        "gradient_ratio": Fact(1.0, 3),
        "gradient_health": Fact(1.0, 3),
        "isolation_violations": 0,
    }
    gain = measured(loss, se)
    return live_slot(
        "slot0", SeedStage.TRAINING, epochs_in_stage=epochs, probe_gain_loss=gain, **{**defaults, **fields}
    )


def busy(slot: SlotView, **fields: object) -> EnvView:
    """A row in which nothing more can grow."""
    return row_view(slot, max_seeds=1, **fields)


def test_it_grows_early_the_largest_first_from_the_input_on_and_keeps_all() -> None:
    world = everything_helps()
    last = world.play(HeuristicPolicy())
    assert world.done(Op.GERMINATE) == [(1, "slot0", "large"), (2, "slot1", "large"), (3, "slot2", "large")]
    assert last.fossilized == {"large": 3}
    assert not last.pruned


def test_the_frugal_one_begins_at_a_third_and_then_goes_up_before_it_goes_down() -> None:
    world = GrowthMDP(row_view(epoch=0, max_seeds=1, max_epochs=60), gains={})
    world.play(FrugalPolicy())
    assert [blueprint for _, _, blueprint in world.done(Op.GERMINATE)][:3] == ["middle", "large", "small"]
    assert everything_helps().play(FrugalPolicy()).fossilized == {"middle": 3}
    for share, first in ((0.01, "small"), (0.1, "small"), (0.5, "middle"), (0.99, "middle"), (1.0, "large")):
        world = everything_helps()
        world.play(HeuristicPolicy(heuristic.HeuristicConfig(first_size=share)))
        assert world.done(Op.GERMINATE)[0][2] == first, share


def test_what_has_failed_makes_way_for_what_has_not() -> None:
    gains = {(f"slot{i}", "middle"): 0.3 for i in range(3)}
    world = GrowthMDP(row_view(epoch=0, max_seeds=1), gains)
    last = world.play(HeuristicPolicy())
    assert [blueprint for _, _, blueprint in world.done(Op.GERMINATE)][:2] == ["large", "middle"]
    assert last.fossilized == {"middle": 1}
    assert last.pruned == {"large": 1}


def test_where_nothing_helps_nothing_touches_the_host_and_all_are_tried() -> None:
    world = GrowthMDP(row_view(epoch=0, max_seeds=1, max_epochs=60), gains={})
    last = world.play(HeuristicPolicy())
    assert world.done(Op.ADVANCE) == []
    assert [blueprint for _, _, blueprint in world.done(Op.GERMINATE)][:3] == ["large", "middle", "small"]
    assert last.fossilized == {}


def test_after_every_failure_only_a_stall_brings_another_try() -> None:
    failed = {name: 1 for name in PARAMETERS}
    learning = row_view(pruned=failed, loss_history=(1.0, 0.9, 0.8, 0.7), epoch=4)
    stalled = replace(learning, loss_history=(1.0, 0.7, 0.7, 0.7, 0.695))
    assert decide(learning)[0] == WAIT
    action, reason, evidence = decide(stalled)
    assert action.op is Op.GERMINATE
    assert "stalled" in reason
    assert evidence["loss_fall"] == pytest.approx(0.005 / 0.7)


def test_it_respects_budget_and_veto_by_taking_what_fits() -> None:
    assert decide(row_view(parameter_budget=100))[0].blueprint == "middle"
    assert decide(row_view(vetoed=frozenset({"slot0"})))[0].slot == "slot1"
    assert decide(row_view(parameter_budget=1))[0] == WAIT


@pytest.mark.parametrize(("epoch", "grows"), [(0, False), (1, True), (23, True), (24, False)])
def test_it_starts_no_seed_that_could_not_be_kept_in_time(epoch: int, grows: bool) -> None:
    assert (decide(row_view(epoch=epoch))[0].op is Op.GERMINATE) == grows


def test_the_last_moment_to_germinate_is_early_enough() -> None:
    world = everything_helps()
    world.view = replace(world.view, epoch=23)
    assert world.play(HeuristicPolicy()).fossilized == {"large": 1}


@pytest.mark.parametrize(
    ("fields", "blends"),
    [
        ({}, True),
        ({"gradient_ratio": None}, False),
        ({"gradient_ratio": Fact(0.01, 3)}, False),
        ({"gradient_health": None}, False),
        ({"gradient_health": Fact(math.nan, 3)}, False),
        ({"isolation_violations": 1}, False),
        ({"isolation_violations": None}, True),
        ({"isolation_violations": None, "isolation_due": True}, False),
    ],
)
def test_it_blends_only_with_every_piece_of_evidence(fields: dict[str, object], blends: bool) -> None:
    assert (decide(busy(training(0.5, **fields)))[0].op is Op.ADVANCE) == blends


def test_it_blends_only_what_certainly_helps_for_long_enough() -> None:
    assert decide(busy(training(0.5)))[2]["probe_gain_loss"] == 0.5
    assert decide(busy(training(0.5, epochs=2)))[0] == WAIT
    assert decide(busy(training(0.5, se=0.4)))[0] == WAIT


@pytest.mark.parametrize(("epoch", "blends"), [(26, True), (27, False)])
def test_it_blends_nothing_in_that_would_be_lost_at_the_end(epoch: int, blends: bool) -> None:
    ready = replace(training(0.5), probe_gain_loss=measured(0.5, 0.01, epoch))
    assert (decide(busy(ready, epoch=epoch))[0].op is Op.ADVANCE) == blends


def test_evidence_from_before_the_stage_counts_for_nothing() -> None:
    old = replace(holding(5.0, 0.5), removal_cost=measured(5.0, 0.1, epoch=2))
    assert decide(busy(replace(old, stage_epoch=3), epoch=5))[0] == WAIT
    assert decide(busy(replace(old, stage_epoch=2), epoch=4))[0].op is Op.FOSSILIZE


def test_it_keeps_what_metric_and_loss_would_miss() -> None:
    action, _, evidence = decide(busy(holding(5.0, 0.5)))
    assert action == FactoredAction(Op.FOSSILIZE, "slot0")
    assert evidence["removal_cost"] == 5.0
    assert evidence["removal_cost_se"] == 0.1
    assert decide(busy(holding(0.3, 0.5)))[0] == WAIT
    assert decide(busy(holding(5.0, 0.0)))[0] == WAIT
    assert decide(busy(holding(5.0, 0.5, se=4.0)))[0] == WAIT


def test_it_prunes_harm_at_once_and_uncertainty_after_its_time() -> None:
    assert decide(busy(holding(-3.0, -0.3)))[0].op is Op.PRUNE
    assert decide(busy(holding(0.1, 0.01, se=1.0)))[0] == WAIT
    assert decide(busy(holding(0.1, 0.01, se=1.0, epochs=7)))[0].op is Op.PRUNE
    assert decide(busy(training(-0.2)))[0] == WAIT
    assert decide(busy(training(-0.2, epochs=8)))[0].op is Op.PRUNE


@pytest.mark.parametrize(
    ("slot", "why"),
    [
        (training(-0.2, epochs=8), "in 8 epochs of TRAINING it has not passed G2: probe_gain_loss"),
        (training(0.5, epochs=8, gradient_ratio=Fact(0.03, 3)), "has not passed G2: gradient ratio"),
        (holding(0.1, 0.5, epochs=7), "in 7 epochs of HOLDING it has not passed G5: removal cost, by its upper bound"),
    ],
)
def test_a_reason_to_prune_names_the_check_that_failed(slot: SlotView, why: str) -> None:
    action, reason, evidence = decide(busy(slot))
    assert action.op is Op.PRUNE and why in reason
    assert evidence["epochs"] == slot.epochs_in_stage and len(evidence) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_it_prunes_what_is_not_finite(value: float) -> None:
    for slot in (training(value), holding(1.0, value)):
        action, reason, _ = decide(busy(slot))
        assert action.op is Op.PRUNE
        assert str(value) in reason


def test_every_decision_but_waiting_states_measured_evidence() -> None:
    world = everything_helps()
    world.play(HeuristicPolicy())
    assert all(decision.evidence for _, decision in world.decisions if decision.action.op is not Op.WAIT)


def test_what_was_refused_does_not_keep_the_rest_from_its_turn() -> None:
    ready = replace(holding(5.0, 0.5), slot_id="slot1")
    view = row_view(training(0.5), ready, max_seeds=2)
    first = decide(view)[0]
    refused = replace(view, last_outcome=ActionOutcome(first, success=False, why_not="G2 failed"))
    assert first == FactoredAction(Op.ADVANCE, "slot0")
    assert decide(refused)[0] == FactoredAction(Op.FOSSILIZE, "slot1")
    assert decide(replace(view, last_outcome=ActionOutcome(first, success=True)))[0] == first


Names = Mapping[str, str]


def renamed(view: EnvView, slots: Names, kinds: Names) -> EnvView:
    return replace(
        view,
        slots=tuple(
            replace(slot, slot_id=slots[slot.slot_id], blueprint=kinds.get(slot.blueprint or "")) for slot in view.slots
        ),
        blueprints=tuple(kinds[name] for name in view.blueprints),
        blueprint_parameters={
            slots[slot]: {kinds[name]: size for name, size in sizes.items()}
            for slot, sizes in view.blueprint_parameters.items()
        },
        vetoed=frozenset(slots[slot] for slot in view.vetoed),
        pruned={kinds[name]: count for name, count in view.pruned.items()},
        fossilized={kinds[name]: count for name, count in view.fossilized.items()},
    )


def renamed_action(action: FactoredAction, slots: Names, kinds: Names) -> FactoredAction:
    return replace(action, slot=slots.get(action.slot or ""), blueprint=kinds.get(action.blueprint or ""))


KINDS = {"small": "large", "middle": "small", "large": "middle"}


@given(env_views())
def test_renamed_views_give_the_renamed_decision(view: EnvView) -> None:
    ids = [slot.slot_id for slot in view.slots]
    slots = dict(zip(ids, reversed(ids), strict=True))
    assert decide(renamed(view, slots, KINDS))[0] == renamed_action(decide(view)[0], slots, KINDS)


@pytest.mark.parametrize("reorder", [lambda names: names[::-1], lambda names: names[1:] + names[:1]])
def test_recorded_episodes_do_not_depend_on_the_order_of_blueprints(
    reorder: Callable[[tuple[str, ...]], tuple[str, ...]],
) -> None:
    for gains in ({}, {("slot1", "small"): 0.4}, {(f"slot{i}", "middle"): 0.3 for i in range(3)}):
        world = GrowthMDP(row_view(epoch=0, max_epochs=60), gains)
        world.play(HeuristicPolicy())
        for view, decision in world.decisions:
            assert decide(replace(view, blueprints=reorder(view.blueprints)))[0] == decision.action


def test_its_code_names_no_task_slot_or_blueprint() -> None:
    names = {name for layout in Layout for name in blueprints.names(layout)} | set(task_names())
    texts = [node.value for node in ast.walk(ast.parse(inspect.getsource(heuristic))) if isinstance(node, ast.Constant)]
    assert not names & {word for text in texts if isinstance(text, str) for word in text.replace(",", " ").split()}
