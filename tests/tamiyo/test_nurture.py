"""What rules offer to a learned policy, and what they keep to themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from env_views import GERMINATE, env_views, factored_actions, live_slot, measured, row_view
from esper.leyline import (
    WAIT,
    ActionOutcome,
    ActionSpace,
    Blend,
    EnvSpec,
    EnvView,
    Fact,
    FactoredAction,
    Op,
    Policy,
    Promise,
    SeedStage,
    UsageError,
)
from esper.simic.vectorized import fresh_network
from esper.tamiyo.batch import action_space, tables
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import availability
from esper.tamiyo.policies import PromisePolicy
from esper.tamiyo.policies.learned import LearnedPolicy
from esper.tamiyo.policies.nurture import Nurture, Offer
from esper.tolaria.legality import why_illegal

READY = live_slot(
    "slot0",
    SeedStage.TRAINING,
    epochs_in_stage=3,
    gradient_ratio=Fact(1.0, 3),
    gradient_health=Fact(1.0, 3),
    isolation_violations=0,
    probe_gain_loss=measured(0.1, 0.01),
)
PROVEN = live_slot(
    "slot0",
    SeedStage.HOLDING,
    alpha=1.0,
    gradient_health=Fact(1.0, 3),
    removal_cost=measured(5.0, 0.1),
    removal_cost_loss=measured(0.5, 0.01),
)
FREE = row_view().slots[1]


def offered(view: EnvView) -> tuple[Offer, ActionSpace]:
    space = action_space(view)
    return Nurture().offer(view, space), space


def ops(view: EnvView) -> set[Op]:
    return {op for op in Op if offered(view)[0].available.op[op]}


def test_places_are_auditioned_before_anything_is_offered_where_a_policy_was_trained_so() -> None:
    space = action_space(row_view())
    first = Nurture(auditions=True).offer(row_view(epoch=0), space)
    assert first.otherwise.audition == tuple((f"slot{i}", "large") for i in range(3))
    assert [op for op in Op if first.available.op[op]] == [Op.WAIT]
    full = row_view(epoch=0, max_seeds=0)
    assert not Nurture(auditions=True).offer(full, space).otherwise.audition, "nothing may grow"
    heard = row_view(*(replace(slot, promise={"large": Promise(0.5, 3, 9)}) for slot in row_view().slots), epoch=1)
    for later in (Nurture(auditions=True).offer(heard, space), Nurture().offer(row_view(epoch=0), space)):
        assert later.available.op[Op.GERMINATE] and not later.otherwise.audition


def test_nothing_is_offered_before_an_audition_was_heard() -> None:
    """A rollback to before the audition, or one that measured nothing, leaves nothing to read."""
    rules, space = Nurture(auditions=True), action_space(row_view())
    life = row_view().gates.shortest_life(rules.rules.config.tempo)
    again = rules.offer(row_view(epoch=3), space)
    assert len(again.otherwise.audition) == 3 and not again.available.op[Op.GERMINATE]
    assert rules.offer(row_view(epoch=29 - life), space).otherwise.audition
    late = rules.offer(row_view(epoch=30 - life), space)
    assert not late.otherwise.audition and not late.available.op[Op.GERMINATE], "a seed after it could not be kept"
    assert Nurture().offer(row_view(epoch=30 - life), space).available.op[Op.GERMINATE]
    ready = row_view(READY, FREE)
    due = rules.offer(ready, action_space(ready)).otherwise
    assert due.action.op is Op.ADVANCE and not due.audition, "a seed's gate goes first"


@pytest.mark.parametrize("policy", [LearnedPolicy.reader, PromisePolicy])
def test_a_run_too_short_for_an_audition_and_a_seed_is_refused_before_its_first_batch(
    policy: Callable[[], Policy],
) -> None:
    life = row_view().gates.shortest_life()
    made = policy()
    made.reset([EnvSpec(0, 0, 0, life)])
    with pytest.raises(UsageError) as refused:
        made.decide([row_view(epoch=0, max_epochs=life)])
    assert f"{life} epochs are too few" in str(refused.value) and f"legal: {life + 1} or more" in str(refused.value)
    assert made.decide([row_view(epoch=0, max_epochs=life + 1)])[0].audition
    full = made.decide([row_view(epoch=0, max_epochs=life, max_seeds=0)])[0]
    assert full.action == WAIT and not full.audition, "nothing may grow, and nothing is promised"


@given(env_views())
def test_only_growth_and_what_rules_do_otherwise_is_offered_and_all_of_it_is_legal(view: EnvView) -> None:
    offer, space = offered(view)
    growth_heads(space).check_masks(tables([offer.available]))
    assert why_illegal(view, offer.otherwise.action) is None
    everything = availability(view, space)
    for action in factored_actions(space.slots, space.blueprints):
        if not offer.available.allows(space, action):
            continue
        assert everything.allows(space, action)
        assert action.op is Op.GERMINATE or action == offer.otherwise.action


def test_a_seed_that_is_ready_is_blended_in_before_anything_grows() -> None:
    view = row_view(READY, FREE)
    assert ops(view) == {Op.ADVANCE} and availability(view, action_space(view)).op[Op.GERMINATE]


def test_what_is_proven_waits_for_growth() -> None:
    assert ops(row_view(PROVEN, FREE)) == {Op.FOSSILIZE, Op.GERMINATE}
    assert ops(row_view(PROVEN)) == {Op.FOSSILIZE}


def test_growth_is_offered_while_there_is_time_and_not_twice_in_a_row_where_it_was_refused() -> None:
    assert ops(row_view(epoch=0)) == {Op.WAIT, Op.GERMINATE}
    life = row_view().gates.shortest_life(Nurture().rules.config.tempo)
    assert ops(row_view(epoch=30 - life)) == {Op.WAIT, Op.GERMINATE} and ops(row_view(epoch=31 - life)) == {Op.WAIT}
    for success in (True, False):
        view = row_view(last_outcome=ActionOutcome(GERMINATE, success, None if success else "the governor said no"))
        assert (Op.GERMINATE in ops(view)) == success


def test_germinations_blend_as_the_rules_blend() -> None:
    offer, space = offered(row_view(epoch=0))
    found = {
        (action.blend, action.alpha_target, action.tempo)
        for action in factored_actions(space.slots, space.blueprints)
        if action.op is Op.GERMINATE and offer.available.allows(space, action)
    }
    assert found == {(Blend.LINEAR, 1.0, 1)}


@pytest.mark.parametrize("greedy", [False, True])
def test_a_learned_policy_chooses_growth_and_says_the_rules_reasons_for_the_rest(greedy: bool) -> None:
    network = fresh_network(0, cells=8)
    with torch.no_grad():
        network.op_out.bias[Op.PRUNE] = 50.0
    policy = LearnedPolicy(network, greedy=greedy, nurture=Nurture())
    policy.reset([EnvSpec(0, 0, 0, 30)])
    (decision,) = policy.decide([row_view(READY, FREE)])
    assert decision.action == FactoredAction(Op.ADVANCE, "slot0") and "lowers the loss" in decision.reason
    assert decision.macs > 0, "the network ran all the same"
    with torch.no_grad():
        network.op_out.bias[Op.GERMINATE] = 50.0
    policy.reset([EnvSpec(0, 0, 0, 30)])
    (decision,) = policy.decide([row_view(PROVEN, FREE)])
    assert decision.action.op is Op.GERMINATE and decision.action.slot == "slot1"
    assert decision.reason == f"the learned policy's {'likeliest choice' if greedy else 'draw'}"
    assert 0 < dict(decision.evidence)["probability"] <= 1
    policy.reset([EnvSpec(0, 0, 0, 30)])
    (last,) = policy.decide([row_view(PROVEN, FREE, epoch=3, max_epochs=3)])
    assert last.action.op is Op.FOSSILIZE, "the last word is the rules'"
