"""C1, C2, C3 of the conformance list on our own environment, and learners that know nothing of Esper."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from clones import COPIES, go_on_alike, same
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny import tiny

from esper.leyline import HEADS, Op, UsageError
from esper.simic.adapter import GymPolicyAdapter
from esper.simic.env import ENV_ID, FLAT_ID, GrowEnv, GrowVectorEnv
from esper.simic.ppo import PPOConfig
from esper.tamiyo.masks import to_action
from esper.tolaria.legality import why_illegal

WAITING = np.zeros(len(HEADS), dtype=np.int64)


def make(**options: Any) -> GrowEnv:
    return GrowEnv(**{"task": tiny(4), **options})


@pytest.mark.parametrize("actions", ["heads", "joint"])
def test_c1_checkers_find_nothing(actions: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENV_ID, task=tiny(4), actions=actions).unwrapped)
        sb3_check_env(make(actions=actions))


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
            assert np.array_equal(mask.astype(bool), env.action_masks())
            for _ in range(60):
                action = env.action_space.sample(mask)
                illegal += why_illegal(view, to_action(env.space, action)) is not None
                sampled += 1
            _, _, ended, _, info = env.step(action)
    assert illegal == 0, "with one slot, marginals exclude every illegal action"


def test_of_whole_actions_none_that_the_mask_allows_is_illegal() -> None:
    env = make(actions="joint")
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(40):
        _, _, ended, _, info = env.step(env.action_space.sample(info["action_mask"]))
        assert not info["illegal"]
        if ended:
            _, info = env.reset()
    assert env.illegal_actions == 0


def test_an_illegal_action_is_wait_and_says_so() -> None:
    env, waiting = make(), make()
    for each in (env, waiting):
        each.reset(seed=3)
    action = WAITING.copy()
    action[0] = Op.FOSSILIZE
    seen, reward, _, _, info = env.step(action)
    other, other_reward, _, _, other_info = waiting.step(WAITING)
    assert info["illegal"] and "HOLDING" in str(env.why_not) and env.illegal_actions == 1
    assert not other_info["illegal"] and waiting.why_not is None
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


DRAWS = st.lists(st.integers(0, 10**6), max_size=7)


@pytest.mark.parametrize("how", COPIES)
@settings(max_examples=5, deadline=None)
@given(before=DRAWS, after=DRAWS, seed=st.integers(0, 99), reward=st.sampled_from(["objective", "shaped"]))
def test_a_copy_goes_on_as_the_environment_does(
    how: str, before: list[int], after: list[int], seed: int, reward: str
) -> None:
    go_on_alike(make(reward=reward), how, before, after, seed)


def test_the_optimizers_own_parameters_are_an_environments_too() -> None:
    fused, plain = make(optimizer={"fused": True}), make()
    go_on_alike(fused, "deepcopy", [3, 1, 4], [1, 5], 9)
    for env in (fused, plain):
        env.reset(seed=9)
    options = [env.mdp.pool.state()["plain"] for env in (fused, plain)]
    assert ["'fused': True" in str(each) for each in options] == [True, False]
    with pytest.raises(UsageError, match="unknown optimizer option 'fast'; legal: .*fused"):
        make(optimizer={"fast": True})
    with pytest.raises(UsageError, match="optimizer='fused'; legal: AdamW's own parameters"):
        make(optimizer="fused")


def test_a_copy_has_a_life_of_its_own() -> None:
    env, untouched = make(), make()
    for each in (env, untouched):
        each.reset(seed=1)
        each.step(WAITING)
    clone = COPIES["deepcopy"](env)
    clone.step(np.array([Op.GERMINATE, 0, 2, 0, 0, 0]))
    clone.reset()
    assert same(env.step(WAITING), untouched.step(WAITING))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_rows_of_the_vector_environment_are_single_environments(mode: str) -> None:
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, task=tiny(3), autoreset_mode=mode)
    assert isinstance(envs.unwrapped, GrowVectorEnv)
    singles = [make(task=tiny(3)) for _ in range(2)]
    seen, _ = envs.reset(seed=5)
    begun = [single.reset(seed=5 + i)[0] for i, single in enumerate(singles)]
    assert np.array_equal(seen, np.stack(begun)) and seen in envs.observation_space
    envs.action_space.seed(0)
    over = False
    for _ in range(7):
        if mode == "Disabled" and over:
            seen, _ = envs.reset(options={"reset_mask": np.ones(2, dtype=bool)})
            assert np.array_equal(seen, np.stack([single.reset()[0] for single in singles]))
        actions = envs.action_space.sample()
        seen, rewards, terminated, truncated, info = envs.step(actions)
        for i, single in enumerate(singles):
            if mode == "NextStep" and over:
                mine, reward, ended = single.reset()[0], 0.0, False
            else:
                mine, reward, ended, _, _ = single.step(actions[i])
            assert reward == rewards[i] and ended == terminated[i]
            if ended and mode == "SameStep":
                assert np.array_equal(info["final_obs"][i], mine)
                mine, _ = single.reset()
            assert np.array_equal(seen[i], mine)
        over = bool(terminated.all())
        assert not truncated.any()
    assert envs.unwrapped.action_masks().shape == (2, sum(singles[0].space.sizes))


def test_of_a_reset_mask_only_those_begin_anew() -> None:
    envs = GrowVectorEnv(2, "DISABLED", task=tiny(2))
    envs.reset(seed=0)
    waiting = np.stack([WAITING] * 2)
    envs.step(waiting)
    _, info = envs.reset(options={"reset_mask": np.array([True, False])})
    assert info["_epoch"].tolist() == [True, False] and info["epoch"][0] == 0
    *_, ended, _, info = envs.step(waiting)
    assert info["epoch"].tolist() == [1, 2] and ended.tolist() == [False, True]
    with pytest.raises(UsageError, match=r"environments \[1\] are over.*DISABLED.*reset_mask"):
        envs.step(waiting)
    with pytest.raises(UsageError, match=r"actions of shape \(1, 6\); legal: \(2, 6\)"):
        envs.step(waiting[:1])
    with pytest.raises(UsageError, match="autoreset_mode='sometimes'; legal: NEXT_STEP, SAME_STEP, DISABLED"):
        GrowVectorEnv(2, "sometimes", task=tiny(2))


def test_an_episode_ends_in_a_terminal_state_whose_epoch_is_seen() -> None:
    env = make()
    env.reset(seed=0)
    answers = [env.step(WAITING) for _ in range(4)]
    assert [answer[2] for answer in answers] == [False] * 3 + [True] and not any(answer[3] for answer in answers)
    assert [answer[0][0] for answer in answers] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert sum(answer[1] for answer in answers) == pytest.approx(env.mdp.trackers[0].gain)
    assert gymnasium.make(ENV_ID, task=tiny(4)).spec.max_episode_steps == 4  # type: ignore[union-attr]


def test_a_host_can_be_asked_for_by_its_seed() -> None:
    env = make()
    one, _ = env.reset(seed=0, options={"host": 7})
    other, _ = env.reset(seed=1, options={"host": 7})
    after = [env.step(WAITING)[0], make().reset(options={"host": 8}) and None][0]
    assert np.array_equal(one, other) and after is not None
    with pytest.raises(UsageError, match="host is -1; legal: a seed from 0"):
        env.reset(options={"host": -1})
    with pytest.raises(UsageError, match="unknown option of reset 'hots'; did you mean 'host'"):
        env.reset(options={"hots": 1})


def test_our_learner_trains_on_it_through_gymnasium() -> None:
    adapter = GymPolicyAdapter(GrowVectorEnv(2, task=tiny(3)), PPOConfig(gamma=1.0), steps=6, hidden=(8,), cells=8)
    assert adapter.learn(12) == 12


def test_maskable_ppo_trains_on_it_unchanged() -> None:
    from sb3_contrib import MaskablePPO

    model = MaskablePPO("MlpPolicy", gymnasium.make(FLAT_ID, task=tiny(4)), n_steps=16, batch_size=16, n_epochs=1)
    model.learn(32)
    assert model.num_timesteps == 32
    assert model.get_env().get_attr("illegal_actions") == [0]  # type: ignore[union-attr]
