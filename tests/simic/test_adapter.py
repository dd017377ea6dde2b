"""Gymnasium's spaces, masks and reset modes, as the learner sees them."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from esper.leyline import MissingExtraError, UsageError
from esper.simic.adapter import GymEnvironments, GymPolicyAdapter
from esper.simic.ppo import PPOConfig


class Echo(gym.Env[Any, Any]):
    """Shows samples of any space; lasts two steps; remembers what it was told."""

    def __init__(self, seen: gym.Space[Any], told: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = seen, told
        self.heard: list[Any] = []
        self.shown: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.clock = 0
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.heard.append(action)
        self.clock += 1
        return self._show(), 1.0, False, self.clock == 2, {}

    def _show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


class Masked(Echo):
    """The last choice of each head is illegal."""

    def action_masks(self) -> list[bool]:
        sizes = [self.action_space.n] if isinstance(self.action_space, gym.spaces.Discrete) else self.action_space.nvec
        return [choice < n - 1 for n in sizes for choice in range(n)]


class Told(Echo):
    """The same, by ``info`` alone."""

    def reset(self, **options: Any) -> Any:
        seen, _ = super().reset(**options)
        return seen, {"action_mask": np.array(Masked.action_masks(self), dtype=np.int8)}  # type: ignore[arg-type]

    def step(self, action: Any) -> Any:
        *answer, info = super().step(action)
        return *answer, info | {"action_mask": np.array(Masked.action_masks(self), dtype=np.int8)}  # type: ignore[arg-type]


BOX, DISCRETE = gym.spaces.Box(-1, 1, (2, 3)), gym.spaces.Discrete(3, start=5)
MULTI = gym.spaces.MultiDiscrete([2, 3], start=[1, 7])
PARTS = gym.spaces.Dict({"b": BOX, "a": gym.spaces.Tuple([DISCRETE, gym.spaces.MultiBinary(2)])})


def _vector(
    seen: gym.Space[Any], told: gym.Space[Any], kind: type[Echo] = Echo, mode: str = "SameStep"
) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: kind(seen, told)] * 3, autoreset_mode=AutoresetMode(mode))


@pytest.mark.parametrize(("space", "width"), [(BOX, 6), (DISCRETE, 3), (MULTI, 5), (PARTS, 11)])
def test_observations_become_flat_numbers(space: gym.Space[Any], width: int) -> None:
    environments = GymEnvironments(_vector(space, DISCRETE))
    seen = environments.reset(0)
    assert seen.observation["obs"].shape == (3, width)
    if space in (DISCRETE, MULTI):
        ones = 1 if space is DISCRETE else 2
        assert (seen.observation["obs"].sum(1) == ones).all()


def test_parts_of_an_observation_stand_in_their_order() -> None:
    envs = _vector(PARTS, DISCRETE)
    environments = GymEnvironments(envs)
    seen, _ = envs.reset(seed=0)
    flat = environments.flat(seen)
    one_hot = np.eye(3)[seen["a"][0] - 5]
    wanted = np.concatenate([one_hot, seen["a"][1], seen["b"].reshape(3, 6)], axis=1)
    assert np.array_equal(flat.numpy(), wanted.astype(np.float32))
    environments.reset(0)
    for _ in range(2):
        step = environments.step(torch.zeros(3, 1, dtype=torch.long))
    assert step.final is not None and step.final["obs"].shape == (3, 11) and step.ended.all()
    assert not torch.equal(step.final["obs"], step.seen.observation["obs"])
    lasts = [env.unwrapped.shown[-2]["b"] for env in envs.envs]  # type: ignore[attr-defined]
    assert np.array_equal(step.final["obs"][:, 5:].numpy(), np.stack(lasts).reshape(3, 6))
    adapter = GymPolicyAdapter(_vector(PARTS, DISCRETE), PPOConfig(), steps=4, hidden=(4,))
    assert adapter.learn(24) == 24 and adapter.values(seen).shape == (3,)


@pytest.mark.parametrize("space", [BOX, DISCRETE])
def test_what_was_seen_last_leaves_what_is_seen_now_alone(space: gym.Space[Any]) -> None:
    environments = GymEnvironments(_vector(space, DISCRETE))
    environments.reset(0)
    for _ in range(2):
        step = environments.step(torch.zeros(3, 1, dtype=torch.long))
    shown = [env.unwrapped.shown for env in environments.envs.envs]  # type: ignore[attr-defined]
    last, now = (environments.flat(np.stack([each[i] for each in shown])) for i in (-2, -1))
    assert step.final is not None and not torch.equal(last, now)
    assert torch.equal(step.seen.observation["obs"], now) and torch.equal(step.final["obs"], last)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("kind", [Echo, Masked, Told])
@pytest.mark.parametrize("space", [DISCRETE, MULTI])
def test_actions_arrive_in_their_space(space: gym.Space[Any], kind: type[Echo], mode: str) -> None:
    envs = _vector(BOX, space, kind, mode)
    adapter = GymPolicyAdapter(envs, PPOConfig(), steps=20, hidden=(4,))
    adapter.learn(40)
    heard = [action for env in envs.envs for action in env.unwrapped.heard]  # type: ignore[attr-defined]
    assert all(space.contains(action) for action in heard)
    choices = np.array(heard).reshape(len(heard), -1)
    last = [7] if space is DISCRETE else [2, 9]
    reached = [int(column.max()) for column in choices.T]
    assert reached == (last if kind is Echo else [n - 1 for n in last])


def test_steps_count_transitions_not_resets() -> None:
    for mode, transitions in (("SameStep", 60), ("NextStep", 42)):
        adapter = GymPolicyAdapter(_vector(BOX, DISCRETE, mode=mode), PPOConfig(), steps=20, hidden=(4,))
        counts: list[int] = []
        adapter.learn(1, lambda progress, counts=counts: bool(counts.append(progress.steps)))  # type: ignore[misc]
        assert counts == [transitions]


def test_learning_stops_when_told_and_scales_the_rate() -> None:
    adapter = GymPolicyAdapter(_vector(BOX, DISCRETE), PPOConfig(learning_rate=1e-3), steps=4, hidden=(4,))
    rates: list[float] = []

    def stop_after_three(progress: Any) -> bool:
        rates.append(progress.report.lr)
        return len(rates) == 3

    assert adapter.learn(48, stop_after_three, lambda progress: 1 - progress) == 36
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3])


def test_acting_is_greedy_or_drawn() -> None:
    adapter = GymPolicyAdapter(_vector(BOX, MULTI), PPOConfig(), steps=4, hidden=(4,), cells=3)
    seen = adapter.environments.reset(0)
    state, starts = adapter.network.initial_state(3), torch.ones(3, dtype=torch.bool)
    greedy, _ = adapter.act(seen, state, starts)
    assert torch.equal(greedy, adapter.act(seen, state, starts)[0])
    drawn, _ = adapter.act(seen, state, starts, torch.zeros(3, 2))
    assert drawn.tolist() == [[0, 0]] * 3
    assert adapter.values(np.zeros((2, 6))).shape == (2,)


def test_what_is_not_understood_is_refused() -> None:
    with pytest.raises(UsageError, match="action space Box.*Discrete or one-dimensional MultiDiscrete"):
        GymEnvironments(_vector(BOX, BOX))
    with pytest.raises(UsageError, match="observation space Text.*Dict or Tuple of them is needed"):
        GymEnvironments(_vector(gym.spaces.Text(3), DISCRETE))
    with pytest.raises(UsageError, match="autoreset_mode is .*DISABLED"):
        GymEnvironments(_vector(BOX, DISCRETE, mode="Disabled"))


def test_infos_as_a_list_are_refused() -> None:
    environments = GymEnvironments(DictInfoToList(_vector(BOX, DISCRETE)))
    environments.reset(0)
    with pytest.raises(UsageError, match="info is a list; Gymnasium's dictionary is needed"):
        environments.step(torch.zeros(3, 1, dtype=torch.long))


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = _vector(BOX, DISCRETE)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[rl\]'"):
        GymEnvironments(envs)
