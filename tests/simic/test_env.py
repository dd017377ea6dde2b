"""C1, C2, C3 of the conformance list on our own environment, and learners that know nothing of Esper."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny import tiny

from esper.leyline import HEADS, Op
from esper.simic.adapter import GymPolicyAdapter
from esper.simic.env import ENV_ID, GrowEnv, GrowVectorEnv
from esper.simic.ppo import PPOConfig
from esper.tamiyo.masks import to_action
from esper.tolaria.legality import why_illegal

WAITING = np.zeros(len(HEADS), dtype=np.int64)


def make(**options: Any) -> GrowEnv:
    return GrowEnv(**{"task": tiny(4), **options})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def test_c1_checkers_find_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENV_ID, task=tiny(4)).unwrapped)
        sb3_check_env(make())


def test_c2_sampled_actions_are_legal_but_for_pairs_of_heads() -> None:
    env = make(max_seeds=1, slots=("first",))
    env.reset(seed=0)
    env.action_space.seed(0)
    sampled = illegal = 0
    while sampled < 1000:
        _, info = env.reset()
        ended = False
        while not ended:
            view, mask = env.mdp.views[0], info["action_mask"]
            assert np.array_equal(np.concatenate(mask).astype(bool), env.action_masks())
            for _ in range(60):
                action = env.action_space.sample(mask)
                illegal += why_illegal(view, to_action(env.space, action)) is not None
                sampled += 1
            _, _, ended, _, info = env.step(action)
    assert illegal == 0, "with one slot, marginals exclude every illegal action"


def test_an_illegal_action_is_wait_and_says_so() -> None:
    env, waiting = make(), make()
    for each in (env, waiting):
        each.reset(seed=3)
    action = WAITING.copy()
    action[0] = Op.FOSSILIZE
    seen, reward, _, _, info = env.step(action)
    other, other_reward, _, _, other_info = waiting.step(WAITING)
    assert info["illegal"] and "HOLDING" in info["why_not"] and env.illegal_actions == 1
    assert not other_info["illegal"] and "why_not" not in other_info
    assert np.array_equal(seen, other) and reward == other_reward


def test_c3_lockstep_and_pickle() -> None:
    first, second = make(), make()
    third = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own object, in this process
    envs = [first, second, third]
    assert same(envs[0].reset(seed=11), envs[1].reset(seed=11))
    envs[2].reset(seed=11)
    envs[0].action_space.seed(2)
    for _ in range(50):
        action = envs[0].action_space.sample()
        answers = [env.step(action) for env in envs]
        assert same(answers[0], answers[1]) and same(answers[0], answers[2])
        if answers[0][2]:
            begun = [env.reset() for env in envs]
            assert same(begun[0], begun[1]) and same(begun[0], begun[2])


def test_rows_of_the_vector_environment_are_single_environments() -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode="vector_entry_point", task=tiny(3))
    assert isinstance(envs.unwrapped, GrowVectorEnv)
    singles = [make(task=tiny(3)) for _ in range(2)]
    seen, _ = envs.reset(seed=5)
    begun = [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
    assert np.array_equal(seen, np.stack(begun)) and seen in envs.observation_space
    envs.action_space.seed(0)
    for step in range(7):
        actions = envs.action_space.sample()
        seen, rewards, terminated, truncated, info = envs.step(actions)
        for i, single in enumerate(singles):
            mine, reward, ended, _, _ = single.step(actions[i])
            assert reward == rewards[i] and ended == terminated[i] == ((step + 1) % 3 == 0)
            if ended:
                assert np.array_equal(info["final_obs"][i], mine)
                mine, _ = single.reset()
            assert np.array_equal(seen[i], mine)
        assert not truncated.any()
    assert envs.unwrapped.action_masks().shape == (2, sum(singles[0].space.sizes))


def test_an_episode_ends_in_a_terminal_state_whose_epoch_is_seen() -> None:
    env = make()
    env.reset(seed=0)
    answers = [env.step(WAITING) for _ in range(4)]
    assert [answer[2] for answer in answers] == [False] * 3 + [True] and not any(answer[3] for answer in answers)
    assert [answer[0][0] for answer in answers] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert sum(answer[1] for answer in answers) == pytest.approx(env.mdp.trackers[0].gain)


def test_our_learner_trains_on_it_through_gymnasium() -> None:
    adapter = GymPolicyAdapter(GrowVectorEnv(2, task=tiny(3)), PPOConfig(gamma=1.0), steps=6, hidden=(8,), cells=8)
    assert adapter.learn(12) == 12


def test_maskable_ppo_trains_on_it_unchanged() -> None:
    from sb3_contrib import MaskablePPO

    model = MaskablePPO("MlpPolicy", make(), n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(32)
    assert model.num_timesteps == 32
