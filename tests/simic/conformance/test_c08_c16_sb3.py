"""C8 and the differential half of C16: one update equals SB3's PPO, RecurrentPPO and MaskablePPO, weights copied."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from rl_probes import MaskedRecall, Probe, Recall
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from esper.simic.adapter import FlatNetwork, GymEnvironments
from esper.simic.buffer import Rollout
from esper.simic.collect import Collector
from esper.simic.gae import gae
from esper.simic.ppo import PPOConfig, PPOLearner

STEPS, ROWS, CELLS, LR = 12, 6, 8, 1e-3
CLOSE: dict[str, float] = {"atol": 1e-5, "rtol": 0}
"""Single precision, in another order of sums, a hundredth of an optimizer's step."""
CONFIG = PPOConfig(
    gamma=0.9,
    gae_lambda=0.8,
    learning_rate=LR,
    entropy_coefficient=0.01,
    epochs=2,
    target_kl=None,
    normalise_returns=False,
)


class Trunk(BaseFeaturesExtractor):
    """Our trunk as an SB3 features extractor."""

    def __init__(self, space: gym.spaces.Box, trunk: nn.Sequential, width: int) -> None:
        super().__init__(space, width)
        self.layers = trunk

    def forward(self, observation: Tensor) -> Tensor:
        return self.layers(observation)


class Spaces(gym.Env[Any, Any]):
    """Only the spaces of a probe; SB3 asks for an environment."""

    def __init__(self, probe: Probe) -> None:
        self.observation_space, self.action_space = probe.single_observation_space, probe.single_action_space

    def action_masks(self) -> np.ndarray:
        raise NotImplementedError


def _ours(probe: Probe, hidden: tuple[int, ...], cells: int, config: PPOConfig) -> tuple[PPOLearner, Rollout]:
    torch.manual_seed(2)
    environments = GymEnvironments(probe)
    network = FlatNetwork(environments.width, environments.heads, hidden, cells)
    for layer in (*network.outs, network.value_head.linear):
        nn.init.normal_(layer.weight, std=0.5)
    rollout, _ = Collector(environments, network, config.gamma, seed=5).collect(STEPS)
    return PPOLearner(network, config, seed=0), rollout


def _arguments(probe: Probe, config: PPOConfig) -> dict[str, Any]:
    return {
        "env": DummyVecEnv([lambda: Spaces(probe)] * ROWS),
        "n_steps": STEPS,
        "batch_size": STEPS * ROWS,
        "n_epochs": config.epochs,
        "learning_rate": LR,
        "ent_coef": config.entropy_coefficient,
        "vf_coef": config.value_coefficient,
        "gamma": config.gamma,
        "gae_lambda": config.gae_lambda,
        "device": "cpu",
    }


def _fill(model: Any, rollout: Rollout, config: PPOConfig, extras: list[dict[str, Any]]) -> None:
    """Put our rollout into SB3's buffer, with our advantages (C4 has compared those)."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    buffer = model.rollout_buffer
    buffer.reset()
    for t in range(STEPS):
        buffer.add(
            rollout.observation["obs"][t].numpy(),
            rollout.actions[t].numpy(),
            rollout.rewards[t].numpy(),
            rollout.starts[t].numpy(),
            rollout.values[t],
            rollout.log_probs[t],
            **extras[t],
        )
    lambdas = torch.where(rollout.cuts, 0.0, config.gae_lambda)
    advantages = gae(rollout.rewards, rollout.values, rollout.next_values, rollout.discounts, lambdas)
    buffer.advantages = advantages.numpy()
    buffer.returns = (advantages + rollout.values).numpy()


def _copy_trunk_and_outputs(learner: PPOLearner, policy: Any) -> None:
    network = learner.network
    assert isinstance(network, FlatNetwork)
    policy.features_extractor.load_state_dict({f"layers.{k}": v for k, v in network.trunk.state_dict().items()})
    with torch.no_grad():
        policy.action_net.weight.copy_(torch.cat([out.weight for out in network.outs]))
        policy.action_net.bias.copy_(torch.cat([out.bias for out in network.outs]))
    policy.mlp_extractor.value_net[0].load_state_dict(network.value_hidden.state_dict())
    policy.value_net.load_state_dict(network.value_head.linear.state_dict())


def _assert_same_weights(learner: PPOLearner, policy: Any) -> None:
    network = learner.network
    pairs = [
        (torch.cat([out.weight for out in network.outs]), policy.action_net.weight),
        (torch.cat([out.bias for out in network.outs]), policy.action_net.bias),
        *zip(network.trunk.parameters(), policy.features_extractor.parameters(), strict=True),
        *zip(network.value_hidden.parameters(), policy.mlp_extractor.value_net.parameters(), strict=True),
        *zip(network.value_head.linear.parameters(), policy.value_net.parameters(), strict=True),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **CLOSE)


def _trunk_arguments(learner: PPOLearner, width: int) -> dict[str, Any]:
    return {
        "net_arch": {"pi": [], "vf": [learner.network.core_width]},
        "features_extractor_class": Trunk,
        "features_extractor_kwargs": {"trunk": copy.deepcopy(learner.network.trunk), "width": width},
    }


def test_one_update_equals_ppo() -> None:
    probe = Recall(ROWS, (3,), blanks=1)
    learner, rollout = _ours(probe, (7, 5), 0, CONFIG)
    model = PPO("MlpPolicy", policy_kwargs=_trunk_arguments(learner, 5), **_arguments(probe, CONFIG))
    _copy_trunk_and_outputs(learner, model.policy)
    _fill(model, rollout, CONFIG, [{}] * STEPS)
    before = [parameter.clone() for parameter in learner.network.parameters()]
    model.train()
    report = learner.update(rollout)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(before, learner.network.parameters(), strict=True))
    _assert_same_weights(learner, model.policy)
    logged = model.logger.name_to_value
    assert report.kl == pytest.approx(logged["train/approx_kl"], abs=1e-5)
    assert report.policy_loss == pytest.approx(logged["train/policy_gradient_loss"], abs=1e-5)
    assert report.value_loss == pytest.approx(logged["train/value_loss"], abs=1e-5)
    assert report.entropy == pytest.approx(-logged["train/entropy_loss"], abs=1e-5)
    assert report.clip_fraction == pytest.approx(logged["train/clip_fraction"], abs=1e-5)
    assert report.explained_variance == pytest.approx(logged["train/explained_variance"], abs=1e-4)


def test_another_clip_range_is_caught() -> None:
    probe = Recall(ROWS, (3,), blanks=1)
    learner, rollout = _ours(probe, (7, 5), 0, CONFIG)
    model = PPO("MlpPolicy", policy_kwargs=_trunk_arguments(learner, 5), **_arguments(probe, CONFIG))
    _copy_trunk_and_outputs(learner, model.policy)
    _fill(model, rollout, CONFIG, [{}] * STEPS)
    model.ent_coef = 0.02
    model.train()
    learner.update(rollout)
    with pytest.raises(AssertionError):
        _assert_same_weights(learner, model.policy)


def test_without_memory_one_update_equals_maskable_ppo() -> None:
    probe = MaskedRecall(ROWS, (3, 4), blanks=1)
    learner, rollout = _ours(probe, (7, 5), 0, CONFIG)
    model = MaskablePPO("MlpPolicy", policy_kwargs=_trunk_arguments(learner, 5), **_arguments(probe, CONFIG))
    _copy_trunk_and_outputs(learner, model.policy)
    masks = torch.cat(rollout.masks, dim=-1)
    assert not masks.all()
    _fill(model, rollout, CONFIG, [{"action_masks": masks[t].numpy()} for t in range(STEPS)])
    model.train()
    learner.update(rollout)
    _assert_same_weights(learner, model.policy)


def test_with_everything_legal_one_update_equals_recurrent_ppo(monkeypatch: pytest.MonkeyPatch) -> None:
    # sb3-contrib cuts the rollout at a random place, across which no gradient flows; ours unrolls it whole
    monkeypatch.setattr(np.random, "randint", lambda *args: 0)
    config = replace(CONFIG, epochs=1)
    probe = Recall(ROWS, (3,), blanks=1, autoreset=AutoresetMode.SAME_STEP)
    learner, rollout = _ours(probe, (7,), CELLS, config)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        policy_kwargs=_trunk_arguments(learner, 7) | {"lstm_hidden_size": CELLS},
        **_arguments(probe, config),
    )
    _copy_trunk_and_outputs(learner, model.policy)
    network, policy = learner.network, model.policy
    assert network.memory is not None and network.value_memory is not None
    memories = [(network.memory.lstm, policy.lstm_actor), (network.value_memory.lstm, policy.lstm_critic)]
    for ours, theirs in memories:
        theirs.load_state_dict(ours.state_dict())
    nothing = torch.zeros(1, ROWS, CELLS)
    states = [RNNStates((nothing, nothing), (nothing, nothing))]
    with torch.no_grad():
        for t in range(STEPS - 1):
            starts = rollout.starts[t].float()
            _, values, _, after = policy.forward(rollout.observation["obs"][t], states[t], starts)
            torch.testing.assert_close(values.flatten(), rollout.values[t], **CLOSE)
            states.append(after)
    _fill(model, rollout, config, [{"lstm_states": state} for state in states])
    model.train()
    learner.update(rollout)
    _assert_same_weights(learner, policy)
    for ours, theirs in memories:
        for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, yours, **CLOSE)
