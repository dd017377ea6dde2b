"""The tree of a tabulated host, beside a slow and obvious reference: the list of its sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_tables import FEW, A, B, made_up_host

from esper.bench.growtable.host import SPACE, Node, view_at
from esper.bench.growtable.record import action_at
from esper.bench.growtable.sequences import Choices
from esper.leyline import WAIT, FactoredAction, Op
from esper.tamiyo.features import encode
from esper.tamiyo.masks import to_action


def held_slowly(node: Node, done: list[FactoredAction]) -> set[FactoredAction]:
    """Next actions of every sequence that has done the same so far."""
    found = set()
    for record in node.host.records.values():
        actions = [action_at(record.steps, epoch) for epoch in range(1, node.host.world.epochs + 1)]
        if actions[: len(done)] == done and len(done) < len(actions):
            found.add(actions[len(done)])
    return found


def test_every_sequence_can_be_walked_and_nothing_else_is_held() -> None:
    host = made_up_host(0)
    seen = set()
    for choices in FEW:
        node, done = host.root, []
        while not node.ended:
            assert set(node.held) == held_slowly(node, done)
            action = next((c.action for c in choices if c.epoch == node.epoch), WAIT)
            taken, node = node.after(action)
            assert taken == action
            done.append(action)
        assert node.record is host.records[choices] and node.held == {}
        seen.add(node.sequences)
    assert seen == {(choices,) for choices in FEW}


def test_what_is_not_held_becomes_what_the_sequences_do_without_it() -> None:
    root = made_up_host(0).root
    taken, node = root.after(B.action)
    assert taken == WAIT == root.default and node is root.held[WAIT]
    assert node.sequences == ((), *sorted(c for c in FEW if c and c[0].epoch > 0))


def test_masks_allow_exactly_what_is_held() -> None:
    node = made_up_host(0).root
    for action in (WAIT, WAIT):
        node = node.held[action]
    everything = [
        to_action(SPACE, (op, slot, blueprint, blend, target, tempo))
        for op in (Op.WAIT, Op.GERMINATE, Op.ADVANCE, Op.PRUNE)
        for slot in range(3)
        for blueprint in range(5)
        for blend in range(3)
        for target in range(3)
        for tempo in range(4)
    ]
    masks = node.availability
    allowed = {
        action
        for action in everything
        if masks.allows(SPACE, action)
        and (action.blend is None or masks.blend[SPACE.blends.index(action.blend)])
        and (action.tempo is None or masks.tempo[SPACE.tempos.index(action.tempo)])
    }
    assert allowed == set(node.held) and len(allowed) == 2


@pytest.mark.parametrize("choices", FEW)
def test_a_view_tells_what_was_recorded(choices: Choices) -> None:
    host = made_up_host(3)
    view = view_at(host, host.records[choices].steps, 4)
    grown = {c.slot: c for c in choices if c.epoch < 4}
    assert view.metric_history == tuple(10.0 + e + sum(c.epoch < e for c in choices) for e in range(1, 5))
    assert {slot.slot_id: slot.blueprint for slot in view.slots if slot.live} == {
        slot: choice.blueprint for slot, choice in grown.items()
    }
    for slot in (slot for slot in view.slots if slot.live):
        assert slot.removal_cost is None and slot.probe_gain is not None and slot.gradient_ratio is not None
        assert (slot.probe_gain.value.value, slot.probe_gain.value.se, slot.probe_gain.epoch) == (1.5, 0.25, 4)
        assert slot.gradient_ratio.value == math.inf and slot.gradient_health is not None
        assert slot.gradient_health.epoch == 3 and slot.probe_gain_loss is not None
        assert math.isnan(slot.probe_gain_loss.value.value), "NaN was measured; it is not absent"
        assert (slot.metric_at_germination is None) == (grown[slot.slot_id].epoch == 0)
    assert np.isfinite(encode(view).vector).all()


def test_before_the_first_epoch_nothing_was_measured() -> None:
    view = made_up_host(0).root.view
    assert (view.metric, view.loss, view.last_outcome, view.metric_history) == (None, None, None, ())
    assert A.action in made_up_host(0).root.held
