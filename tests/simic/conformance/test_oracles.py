"""The oracles agree with each other and with arithmetic before anything is judged by them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from rl_oracles import naive_gae, sb3_gae
from rl_probes import ConstantReward, Flip, MaskedRecall, Recall


def test_naive_gae_equals_sb3_without_ends() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(7, 3)), rng.normal(size=(8, 3))
    never = np.zeros((7, 3), dtype=bool)
    theirs = sb3_gae(rewards, values, np.zeros((7, 3)), (never, never), (0.9, 0.8))
    ours = naive_gae(
        torch.tensor(rewards),
        torch.tensor(values[:-1]),
        torch.tensor(values[1:]),
        torch.full((7, 3), 0.9).double(),
        torch.full((7, 3), 0.8).double(),
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_naive_gae_by_hand() -> None:
    column = torch.tensor([[1.0], [1.0]])
    half = torch.full((2, 1), 0.5)
    # delta = 1 + .5 * 2 - 1 = 1 twice; A_0 = 1 + .5 * .5 * 1
    assert naive_gae(column, column, 2 * column, half, half).flatten().tolist() == [1.25, 1.0]


def test_flip_values_solve_its_equations() -> None:
    gamma = 0.9
    v0, v1 = np.linalg.solve([[1, -gamma], [-gamma, 1]], [0, 1])
    assert (round(v0, 2), round(v1, 2)) == (4.74, 5.26)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_probe_steps_as_gymnasium_says(mode: AutoresetMode) -> None:
    env = Flip(3, mode)
    first, _ = env.reset(seed=1)
    obs, reward, terminated, truncated, info = env.step(np.zeros(3, dtype=int))
    assert truncated.all() and not terminated.any()
    np.testing.assert_array_equal(reward, first[:, 1])
    if mode is AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(np.stack(list(info["final_obs"])), 1 - first)
    else:
        np.testing.assert_array_equal(obs, 1 - first)
        _, reward, _, truncated, _ = env.step(np.zeros(3, dtype=int))
        assert not truncated.any() and not reward.any()


def test_constant_reward_is_cut_after_eight() -> None:
    env = ConstantReward(2)
    env.reset(seed=0)
    cuts = [bool(env.step(np.zeros(2, dtype=int))[3].all()) for _ in range(16)]
    assert [i for i, cut in enumerate(cuts) if cut] == [7, 15]


def test_recall_pays_the_right_answer_only_when_asked() -> None:
    env = Recall(4, (2, 3), blanks=2)
    obs, _ = env.reset(seed=0)
    answer = np.stack([obs[:, :2].argmax(1), obs[:, 2:5].argmax(1)], axis=1)
    rewards = [env.step(answer)[1] for _ in range(4)]
    assert np.array_equal(np.stack(rewards), np.array([[0.0] * 4] * 3 + [[1.0] * 4]))


def test_masked_recall_leaves_the_answer_legal() -> None:
    env = MaskedRecall(64, (3, 4))
    env.reset(seed=0)
    masks = env.action_masks()
    assert masks[np.arange(64), env.cue[:, 0]].all() and masks[np.arange(64), 3 + env.cue[:, 1]].all()
    assert 0.4 < masks.mean() < 0.9
