from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from env_views import env_views, factored_actions, live_slot, row_view
from esper.leyline import HEADS, RELEVANT_HEADS, ActionSpace, EnvView, Op, SeedStage, SlotView
from esper.tamiyo.masks import RELEVANCE, availability, to_action, to_indices
from esper.tolaria.legality import why_illegal


def space_of(view: EnvView) -> ActionSpace:
    return ActionSpace(tuple(slot.slot_id for slot in view.slots), view.blueprints)


@given(env_views())
def test_the_conditional_masks_allow_exactly_the_legal_actions(view: EnvView) -> None:
    space = space_of(view)
    available = availability(view, space)
    for action in factored_actions(space.slots, space.blueprints):
        assert available.allows(space, action) == (why_illegal(view, action) is None), action


@given(env_views())
def test_an_op_is_available_only_where_some_whole_action_is_legal(view: EnvView) -> None:
    space = space_of(view)
    legal = [a for a in factored_actions(space.slots, space.blueprints) if why_illegal(view, a) is None]
    assert [bool(x) for x in availability(view, space).op] == [any(a.op is op for a in legal) for op in Op]


@given(env_views())
def test_marginals_allow_every_legal_action_and_nothing_that_none_consumes(view: EnvView) -> None:
    space = space_of(view)
    marginals = availability(view, space).marginals()
    legal = [a for a in factored_actions(space.slots, space.blueprints) if why_illegal(view, a) is None]
    assert tuple(marginals) == HEADS
    for k, (head, size) in enumerate(zip(HEADS, space.sizes, strict=True)):
        consumed = {to_indices(space, a)[k] for a in legal if head in RELEVANT_HEADS[a.op]}
        expected = consumed or set(range(size))
        assert set(np.flatnonzero(marginals[head])) == expected, head


@given(env_views(), st.data())
def test_sampling_head_by_head_never_says_an_illegal_action(view: EnvView, data: st.DataObject) -> None:
    space = space_of(view)
    available = availability(view, space)

    def pick(mask: np.ndarray) -> int:
        return int(data.draw(st.sampled_from(np.flatnonzero(mask).tolist())))

    op = pick(available.op)
    indices = [op, 0, 0, 0, 0, 0]
    if RELEVANCE[op, 1]:
        slot = indices[1] = pick(available.slot[op])
        conditional = (available.blueprint[slot], available.blend, available.alpha_target[slot], available.tempo)
        for head, mask in enumerate(conditional, start=2):
            if RELEVANCE[op, head]:
                indices[head] = pick(mask)
    assert why_illegal(view, to_action(space, indices)) is None


def test_indices_and_actions_are_inverse() -> None:
    space = space_of(row_view())
    for action in factored_actions(space.slots, space.blueprints):
        assert to_action(space, to_indices(space, action)) == action


def test_relevance_is_the_contract_and_knows_no_state() -> None:
    assert [{h for h, used in zip(HEADS, row, strict=True) if used} for row in RELEVANCE] == [
        set(RELEVANT_HEADS[op]) for op in Op
    ]


def test_the_space_decides_the_order_not_the_view() -> None:
    view = row_view(SlotView("slot0"), live_slot("slot1", SeedStage.TRAINING))
    turned = ActionSpace(("slot1", "slot0"), tuple(reversed(view.blueprints)))
    available = availability(view, turned)
    assert available.slot[Op.GERMINATE].tolist() == [False, True]
    assert available.slot[Op.ADVANCE].tolist() == [True, False]
