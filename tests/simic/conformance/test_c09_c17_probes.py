"""C9 to C13, the learning half of C16, and C17: probes learnt to known values, and mistakes that are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rl_growth import FakeGrowth
from rl_judge import FlipSameState, FlipTerminal, TruncationAsTerminal, greedy_score
from rl_oracles import weights_digest
from rl_probes import (
    ChooseSign,
    ConstantReward,
    Flip,
    MaskedRecall,
    MatchSign,
    OneValue,
    Probe,
    Recall,
    RememberedValue,
    SignValue,
    TwoSteps,
)
from sb3_contrib.common.envs import InvalidActionEnvMultiDiscrete
from stable_baselines3.common.envs import IdentityEnvMultiDiscrete

from esper.simic.adapter import GymPolicyAdapter
from esper.simic.collect import Collector, mean_return
from esper.simic.ppo import PPOConfig, PPOLearner
from esper.tamiyo.network import GrowthNetwork

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
VALUES = PPOConfig(gamma=0.9, learning_rate=1e-2, entropy_coefficient=0.0, target_kl=None)
MEMORY = PPOConfig(gamma=0.99, learning_rate=1e-2, entropy_coefficient=0.0, epochs=8, minibatches=2, target_kl=None)
PLAIN = PPOConfig(gamma=0.4, learning_rate=5e-3, entropy_coefficient=0.0, epochs=8, minibatches=4, target_kl=None)


def _values(probe: Probe, seen: list[Any], config: PPOConfig, seed: int, steps: int = 9_000) -> np.ndarray:
    """V of observations after learning a probe."""
    adapter = GymPolicyAdapter(probe, config, 16, hidden=(8,), seed=seed)
    adapter.learn(steps)
    return adapter.values(np.array(seen, dtype=np.float32))


@pytest.mark.parametrize("seed", SEEDS)
def test_c9_a_time_limit_does_not_end_the_reward(seed: int) -> None:
    config = replace(VALUES, gamma=0.95)
    assert _values(ConstantReward(16), [[0.0]], config, seed) == pytest.approx([20.0], abs=0.5)


def test_c9_a_truncation_taken_for_terminal_is_caught() -> None:
    config = replace(VALUES, gamma=0.95)
    assert _values(TruncationAsTerminal(16), [[0.0]], config, 0, 8_000) == pytest.approx([4.0], abs=0.5)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("seed", SEEDS)
def test_c10_the_bootstrap_is_of_the_state_that_was_reached(seed: int, mode: AutoresetMode) -> None:
    assert _values(Flip(16, mode), np.eye(2).tolist(), VALUES, seed) == pytest.approx([4.74, 5.26], abs=0.1)


@pytest.mark.parametrize(("mutant", "wrong"), [(FlipSameState, [0.0, 10.0]), (FlipTerminal, [0.0, 1.0])])
def test_c10_the_known_mistakes_are_caught(mutant: Callable[[int], Probe], wrong: list[float]) -> None:
    assert _values(mutant(16), np.eye(2).tolist(), VALUES, 0) == pytest.approx(wrong, abs=0.5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("probe", "seen", "values"),
    [
        (OneValue, [[0.0]], [1.0]),
        (SignValue, [[1.0], [-1.0]], [1.0, -1.0]),
        (TwoSteps, [[0.0], [1.0]], [0.9, 1.0]),
        (ChooseSign, [[0.0]], [1.0]),
        (MatchSign, [[1.0], [-1.0]], [1.0, 1.0]),
    ],
)
def test_c11_five_probes(probe: Callable[[int], Probe], seen: list[Any], values: list[float], seed: int) -> None:
    config = replace(VALUES, learning_rate=5e-3, epochs=8)
    adapter = GymPolicyAdapter(probe(16), config, 8, hidden=(16,), seed=seed)
    adapter.learn(3_000)
    assert adapter.values(np.array(seen, dtype=np.float32)) == pytest.approx(values, abs=0.1)
    if len(adapter.environments.heads.consumed) == 2:
        assert greedy_score(adapter, 20) == 1.0


def _remembered(seed: int, forget: bool) -> float:
    """Largest error of learnt values where the sign was seen, with a gamma for which V = +-2."""
    config = replace(MEMORY, gamma=0.5, minibatches=1)
    adapter = GymPolicyAdapter(RememberedValue(32), config, 8, hidden=(), cells=8, seed=seed)
    if forget:
        network, right = adapter.network, adapter.network.values
        network.values = lambda seen, state: right(seen, network.initial_state(len(state[0])))  # type: ignore[method-assign]
    adapter.learn(6_000)
    rollout, _ = adapter.collector.collect(12)
    return float((rollout.values - 2 * rollout.rewards).abs().max())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bootstrap_remembers_the_episode(seed: int) -> None:
    assert _remembered(seed, forget=False) < 0.3


def test_a_bootstrap_from_fresh_memory_is_caught() -> None:
    assert _remembered(0, forget=True) > 0.6


def _members(make: Callable[[], Any], count: int = 8) -> SyncVectorEnv:
    """SB3's test environments draw from the global and the space's generator, so those are seeded."""

    def seeded(index: int) -> gym.Env[Any, Any]:
        env = make()
        env.action_space.seed(index)
        return env

    np.random.seed(0)
    return SyncVectorEnv([lambda index=index: seeded(index) for index in range(count)])  # type: ignore[misc]


class Unmasked(InvalidActionEnvMultiDiscrete):
    """The same environment with nothing said about what is legal."""

    action_masks = property()  # type: ignore[assignment]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: IdentityEnvMultiDiscrete(4), marks=pytest.mark.slow, id="identity"),
        pytest.param(lambda: InvalidActionEnvMultiDiscrete([4, 6, 5], n_invalid_actions=8), id="masked"),
    ],
)
def test_c12_several_heads_within_twice_the_steps_of_sb3(make: Callable[[], Any], seed: int) -> None:
    adapter = GymPolicyAdapter(_members(make), PLAIN, 32, hidden=(64,), seed=seed)
    adapter.learn(4_096)
    assert greedy_score(adapter, 102) >= 90


def test_c12_masks_are_what_makes_it_quick() -> None:
    few_steps = 2_048
    scores = []
    for make in (InvalidActionEnvMultiDiscrete, Unmasked):
        envs = _members(lambda make=make: make([4, 6, 5], n_invalid_actions=8))  # type: ignore[misc]
        adapter = GymPolicyAdapter(envs, PLAIN, 32, hidden=(64,), seed=0)
        adapter.learn(few_steps)
        scores.append(greedy_score(adapter, 102))
    assert scores[0] >= 90 > 50 > scores[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_c13_recall(seed: int) -> None:
    adapter = GymPolicyAdapter(Recall(32), MEMORY, 12, hidden=(), cells=16, seed=seed)
    adapter.learn(8_000)
    assert greedy_score(adapter, 120) >= 0.95


def test_c13_without_memory_recall_is_guessing() -> None:
    adapter = GymPolicyAdapter(Recall(32), MEMORY, 12, hidden=(16,), seed=0)
    adapter.learn(4_000)
    assert greedy_score(adapter, 120) == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_c16_recall_with_masks_and_three_heads(seed: int) -> None:
    adapter = GymPolicyAdapter(MaskedRecall(32, (2, 3, 2), blanks=1), MEMORY, 6, hidden=(), cells=16, seed=seed)
    adapter.learn(7_000)
    assert greedy_score(adapter, 80) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_conditional_heads_learn_and_serve_other_slots_and_blueprints(seed: int) -> None:
    torch.manual_seed(seed)
    environments = FakeGrowth(64)
    network = GrowthNetwork(replace(environments.config, cells=0))
    config = PPOConfig(learning_rate=1e-2, entropy_coefficient=0.0, epochs=4, minibatches=2, target_kl=None)
    learner, collector = PPOLearner(network, config, seed), Collector(environments, network, 1.0, seed)
    for _ in range(30):
        learner.update(collector.collect(8)[0])
    familiar = mean_return(collector.collect(16)[1])
    other = FakeGrowth(64, slots=4, blueprints=("norm", "conv3", "lora", "unheard"))
    strange = mean_return(Collector(other, network, 1.0, seed + 9).collect(16)[1])
    assert familiar is not None and strange is not None
    assert familiar >= 0.9
    assert strange >= 0.8


def _trained(seed: int) -> str:
    config = replace(MEMORY, normalise_observations=True, entropy_coefficient=0.01)
    adapter = GymPolicyAdapter(MaskedRecall(8, (2, 3), blanks=1), config, 9, hidden=(8,), cells=8, seed=seed)
    adapter.learn(300)
    return weights_digest(adapter.network)


def test_c17_the_same_seed_gives_the_same_weights() -> None:
    first = _trained(3)
    torch.manual_seed(99)
    np.random.seed(99)
    assert _trained(3) == first
    assert _trained(4) != first
