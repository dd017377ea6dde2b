from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from env_views import GERMINATE, env_views, factored_actions, live_slot, row_view
from esper.leyline import PRUNABLE, WAIT, Blend, EnvView, FactoredAction, Op, SeedStage, SlotView
from esper.tolaria.legality import legal_alpha_targets, legal_blueprints, legal_slots, why_illegal


def test_a_fresh_row_may_grow_anything_anywhere_and_do_nothing_else() -> None:
    view = row_view()
    assert legal_slots(view, Op.GERMINATE) == ("slot0", "slot1", "slot2")
    assert legal_blueprints(view, "slot1") == ("small", "middle", "large")
    assert why_illegal(view, GERMINATE) is None
    assert why_illegal(view, WAIT) is None
    assert all(legal_slots(view, op) == () for op in Op if op is not Op.GERMINATE)


@pytest.mark.parametrize(
    ("view", "because"),
    [
        (row_view(live_slot("slot0", SeedStage.TRAINING)), "slot slot0 is TRAINING, not DORMANT"),
        (row_view(SlotView("slot0", SeedStage.EMBARGOED)), "slot slot0 is EMBARGOED, not DORMANT"),
        (row_view(vetoed=frozenset({"slot0"})), "the governor forbids growth in slot slot0 for now"),
        (
            row_view(SlotView("slot0"), live_slot("slot1", SeedStage.FOSSILIZED), max_seeds=1),
            "1 seeds are live, and max_seeds is 1",
        ),
        (row_view(epoch=30), "epoch 30 of 30 is the last; a new seed could not learn"),
        (row_view(blueprints=("other",)), "there is no blueprint 'small'; the blueprints are other"),
        (row_view(blueprint_parameters={"slot0": {"large": 9}}), "blueprint small cannot be built in slot slot0"),
        (
            row_view(SlotView("slot0"), live_slot("slot1", SeedStage.HOLDING), parameter_budget=610),
            "small would bring the seeds to 616 parameters, and the budget is 610",
        ),
    ],
)
def test_germination_names_what_stands_against_it(view: EnvView, because: str) -> None:
    assert why_illegal(view, GERMINATE) == because
    assert "small" not in legal_blueprints(view, "slot0")


@pytest.mark.parametrize("stage", SeedStage)
def test_each_op_wants_its_stage(stage: SeedStage) -> None:
    view = row_view(replace(live_slot("slot0", stage), alpha=0.7))
    assert bool(legal_slots(view, Op.GERMINATE)) == (stage is SeedStage.DORMANT)
    assert bool(legal_slots(view, Op.ADVANCE)) == (stage is SeedStage.TRAINING)
    assert bool(legal_slots(view, Op.SET_ALPHA)) == (stage is SeedStage.HOLDING)
    assert bool(legal_slots(view, Op.FOSSILIZE)) == (stage is SeedStage.HOLDING)
    assert bool(legal_slots(view, Op.PRUNE)) == (stage in PRUNABLE)
    assert legal_alpha_targets(view, "slot0") == ((0.5, 1.0) if stage is SeedStage.HOLDING else ())


@pytest.mark.parametrize(
    ("action", "because"),
    [
        (FactoredAction(Op.PRUNE), "PRUNE needs a slot"),
        (FactoredAction(Op.WAIT, slot="slot0"), "WAIT takes no slot, and was given 'slot0'"),
        (replace(GERMINATE, tempo=None), "GERMINATE needs a tempo"),
        (replace(GERMINATE, tempo=0), "tempo 0 is not a positive number of epochs"),
        (replace(GERMINATE, alpha_target=float("nan")), "alpha_target nan is not in (0, 1]"),
        (replace(GERMINATE, blend="wavy"), "there is no blend 'wavy'; the blends are linear, cosine, sigmoid"),
        (FactoredAction(Op.PRUNE, "slot9"), "there is no slot 'slot9'; the slots are slot0, slot1, slot2"),
        (
            FactoredAction(Op.SET_ALPHA, "slot0", blend=Blend.LINEAR, alpha_target=0.5, tempo=3),
            "slot slot0 is DORMANT, not HOLDING",
        ),
    ],
)
def test_malformed_actions_are_named(action: FactoredAction, because: str) -> None:
    assert why_illegal(row_view(), action) == because


def test_the_present_alpha_is_no_target() -> None:
    view = row_view(live_slot("slot0", SeedStage.HOLDING, alpha=0.7 + 1e-8))
    action = FactoredAction(Op.SET_ALPHA, "slot0", blend=Blend.LINEAR, alpha_target=0.7, tempo=3)
    assert why_illegal(view, action) == "slot slot0 has alpha 0.7 already"
    assert why_illegal(view, replace(action, alpha_target=0.5)) is None


@given(env_views())
def test_the_lists_are_exactly_the_legal_choices(view: EnvView) -> None:
    """Reference: ask about every single action."""
    names = tuple(slot.slot_id for slot in view.slots)
    legal = [a for a in factored_actions(names, view.blueprints) if why_illegal(view, a) is None]
    for op in Op:
        of_op = [a for a in legal if a.op is op]
        assert set(legal_slots(view, op)) == {a.slot for a in of_op if a.slot is not None}
    for name in names:
        germinations = {a.blueprint for a in legal if a.op is Op.GERMINATE and a.slot == name}
        targets = {a.alpha_target for a in legal if a.op is Op.SET_ALPHA and a.slot == name}
        assert set(legal_blueprints(view, name)) == germinations
        assert set(legal_alpha_targets(view, name)) == targets
