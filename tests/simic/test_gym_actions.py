"""Whole actions by number, and the masks of both kinds."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny

from esper.simic.env import GrowEnv
from esper.simic.gym_actions import HeadActions, JointActions, MaskedHeads
from esper.tamiyo.masks import availability
from esper.tolaria.legality import why_illegal


def test_the_mask_of_whole_actions_is_what_legality_says_of_each() -> None:
    env = GrowEnv(task=tiny(8), max_seeds=2, param_budget=120)
    env.reset(seed=0)
    joint, ops, refused = JointActions(env.space), set(), 0
    choices = np.random.default_rng(0)
    for _ in range(24):
        view = env.mdp.views[0]
        mask = joint.mask(availability(view, env.space), None)
        assert mask.tolist() == [why_illegal(view, action) is None for action in joint.actions]
        ops |= {joint.actions[i].op for i in np.flatnonzero(mask)}
        refused += int((~mask).sum())
        # what has been reached is gone on with: seeds come up to HOLDING, and alpha can be set
        legal = [joint.actions[i] for i in np.flatnonzero(mask)]
        best = max(action.op for action in legal if action.op not in (4, 5))
        of_best = [action for action in legal if action.op == best]
        action = of_best[int(choices.integers(len(of_best)))]
        if env.step(env.actions.say(action))[2]:
            env.reset()
    assert len(ops) >= 4 and refused


def test_numbers_name_every_action_once_and_waiting_first() -> None:
    space = GrowEnv(task=tiny(2)).space
    joint, heads = JointActions(space), HeadActions(space)
    assert joint.space.n == len(set(joint.actions)) == 1 + 2 * (3 * 3 * 3 * 4) + 2 + 2 * (3 * 3 * 4) + 2 + 2
    assert joint.say(joint.actions[0]) == 0 and joint.actions[0].op == 0
    for number, action in enumerate(joint.actions):
        assert joint.read(joint.say(action)) == action == heads.read(heads.say(action)) and joint.say(action) == number


def test_heads_are_sampled_with_a_flat_mask_or_one_for_each() -> None:
    space = MaskedHeads([2, 3])
    flat = np.array([0, 1, 1, 0, 0], dtype=np.int8)
    assert [space.sample(flat).tolist() for _ in range(5)] == [[1, 0]] * 5
    assert space.sample((flat[:2], flat[2:])).tolist() == [1, 0]
    with pytest.raises(AssertionError):
        space.sample(flat[:4])
    assert space.sample() in space and space == MaskedHeads([2, 3])
