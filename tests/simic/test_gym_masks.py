"""No wrapper and no process takes the masks from the learner without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from made_up_tables import made_up_host
from sb3_contrib.common.wrappers import ActionMasker

from esper.bench.growtable.env import FLAT_ID, GrowTableEnv
from esper.bench.growtable.table import Table
from esper.leyline import UsageError
from esper.simic.adapter import GymEnvironments, GymPolicyAdapter
from esper.simic.ppo import PPOConfig

TABLE = Table([made_up_host(0), made_up_host(1)], {})


def member(actions: str = "joint") -> GrowTableEnv:
    return GrowTableEnv(table=TABLE, worlds="digits", actions=actions)


class OneChoice(gym.Env[Any, int]):
    """Which one is legal shows in the mask alone: the last. Chosen otherwise, it counts."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), float(action != 3), False, False, {}

    def action_masks(self) -> Any:
        return np.arange(4) == 3


MEMBERS: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "nothing": lambda env: env,
    "ActionMasker": lambda env: ActionMasker(env, lambda inner: inner.unwrapped.action_masks()),
    "RecordEpisodeStatistics": lambda env: wrappers.RecordEpisodeStatistics(env),
    "NormalizeReward": lambda env: wrappers.NormalizeReward(env),
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 5),
    "three": lambda env: wrappers.TimeLimit(wrappers.OrderEnforcing(MEMBERS["ActionMasker"](env)), 5),
}
VECTORS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda envs: envs,
    "RecordEpisodeStatistics": vector_wrappers.RecordEpisodeStatistics,
    "NormalizeReward": vector_wrappers.NormalizeReward,
}


def wrongs(envs: Any, steps: int = 12) -> float:
    """What choosing something else than the legal choice was counted as."""
    environments = GymEnvironments(envs)
    seen, wrong = environments.reset(0), 0.0
    for _ in range(steps):
        action = seen.masks[0].float().argmax(1, keepdim=True)
        assert seen.masks[0].sum() == environments.size
        step = environments.step(action)
        seen, wrong = step.seen, wrong + float(step.rewards.abs().sum())
    envs.close()
    return wrong


@pytest.mark.parametrize("around", VECTORS)
@pytest.mark.parametrize("inside", MEMBERS)
def test_masks_come_through_every_wrapper(inside: str, around: str) -> None:
    envs = VECTORS[around](SyncVectorEnv([lambda: MEMBERS[inside](OneChoice())] * 2))
    seen = GymEnvironments(envs).reset(0)
    assert seen.masks[0].tolist() == [[False, False, False, True]] * 2
    adapter = GymPolicyAdapter(envs, PPOConfig(), steps=10, hidden=(4,))
    paid: list[float] = []
    adapter.learn(20, lambda progress: bool(paid.extend(e.episode_return for e in progress.episodes)))
    assert not any(paid)


@pytest.mark.parametrize("inside", ["nothing", "ActionMasker", "RecordEpisodeStatistics"])
def test_masks_come_from_other_processes(inside: str) -> None:
    envs = AsyncVectorEnv([lambda: MEMBERS[inside](OneChoice())] * 2, context="fork")
    assert wrongs(vector_wrappers.RecordEpisodeStatistics(envs)) == 0


def test_no_action_of_a_learner_is_illegal_in_a_table_of_whole_actions() -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(SyncVectorEnv([member] * 2))
    adapter = GymPolicyAdapter(envs, PPOConfig(), steps=30, hidden=(4,))
    adapter.learn(60)
    assert [env.illegal_actions for env in envs.unwrapped.envs] == [0, 0]  # type: ignore[attr-defined]


CHANGING: dict[str, Callable[[], Any]] = {
    "TransformAction": lambda: SyncVectorEnv(
        [lambda: wrappers.TransformAction(OneChoice(), lambda action: 3 - action, None)] * 2
    ),
    "StickyAction": lambda: SyncVectorEnv([lambda: wrappers.StickyAction(OneChoice(), 0.5)]),
    "RepeatAction": lambda: SyncVectorEnv([lambda: wrappers.RepeatAction(OneChoice(), 2)]),
    "another": lambda: vector_wrappers.TransformAction(SyncVectorEnv([OneChoice]), lambda actions: 3 - actions),
}


@pytest.mark.parametrize("name", CHANGING)
def test_masks_below_what_changes_actions_are_refused(name: str) -> None:
    wrapper = "TransformAction" if name == "another" else name
    with pytest.raises(UsageError, match=f"masks are those of the actions below {wrapper}, which changes them"):
        GymEnvironments(CHANGING[name]())


def test_masks_below_what_changes_actions_in_other_processes_are_refused() -> None:
    def sticky() -> Any:
        return wrappers.StickyAction(gym.make(FLAT_ID, table=TABLE, worlds="digits"), 0.5)

    envs = AsyncVectorEnv([sticky], context="fork")
    try:
        with pytest.raises(UsageError, match="actions below StickyAction"):
            GymEnvironments(envs)
    finally:
        envs.close()
    envs = AsyncVectorEnv([lambda: wrappers.RecordEpisodeStatistics(sticky().env)] * 2, context="fork")
    try:
        seen = GymEnvironments(envs).reset(0)
        assert seen.masks[0].shape == (2, envs.single_action_space.n) and not seen.masks[0].all()  # type: ignore[attr-defined]
    finally:
        envs.close()


def test_masks_above_what_changes_actions_are_taken() -> None:
    def changed() -> Any:
        inner = wrappers.TransformAction(OneChoice(), lambda action: 3 - action, None)
        return ActionMasker(inner, lambda env: env.unwrapped.action_masks()[::-1])

    assert wrongs(SyncVectorEnv([changed] * 2)) == 0


def test_masks_of_some_or_of_another_size_are_refused() -> None:
    class Wide(OneChoice):
        def action_masks(self) -> Any:
            return np.ones(5, dtype=bool)

    with pytest.raises(UsageError, match="1 masks of 5 choices; the action space asks for 1 of 4"):
        GymEnvironments(SyncVectorEnv([Wide])).reset(0)

    with pytest.raises(UsageError, match=r"environments \[1\] have no action_masks"):
        GymEnvironments(SyncVectorEnv([OneChoice, lambda: wrappers.OrderEnforcing(Plain())]))
    assert torch.equal(GymEnvironments(SyncVectorEnv([Plain])).reset(0).masks[0], torch.ones(1, 4, dtype=torch.bool))


class Plain(gym.Env[Any, int]):
    """It has no masks."""

    observation_space, action_space = OneChoice.observation_space, OneChoice.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}
