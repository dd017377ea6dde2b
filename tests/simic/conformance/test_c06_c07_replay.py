"""C6: what acting stored, learning recomputes, before any optimiser step. C7: padding never counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from rl_growth import FakeGrowth
from rl_oracles import weights_digest
from rl_probes import MaskedRecall

from esper.simic.adapter import FlatNetwork, GymEnvironments
from esper.simic.buffer import Rollout
from esper.simic.collect import Collector
from esper.simic.ppo import PPOConfig, PPOLearner
from esper.tamiyo.network import GrowthNetwork


def _recall(mode: AutoresetMode, skip: int = 0) -> tuple[PPOLearner, Rollout]:
    """A policy that is not uniform, and a rollout that begins ``skip`` steps into an episode."""
    torch.manual_seed(1)
    environments = GymEnvironments(MaskedRecall(6, (3, 4), blanks=2, autoreset=mode))
    network = FlatNetwork(environments.width, environments.heads, (8,), cells=8)
    for out in network.outs:
        torch.nn.init.normal_(out.weight)
    collector = Collector(environments, network, gamma=0.9, seed=3)
    if skip:
        collector.collect(skip)
    return PPOLearner(network, PPOConfig(), seed=0), collector.collect(13)[0]


@torch.no_grad()
def _difference(learner: PPOLearner, rollout: Rollout) -> float:
    _, evaluated = learner.evaluate(rollout)
    return float((evaluated.log_prob - rollout.log_probs.flatten())[rollout.valid.flatten()].abs().max())


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("skip", [0, 2])
def test_stored_log_probs_and_values_are_recomputed(mode: AutoresetMode, skip: int) -> None:
    learner, rollout = _recall(mode, skip)
    assert rollout.valid.all() == (mode is AutoresetMode.SAME_STEP)
    # collected step by step, recomputed at once: other kernels in single precision
    assert _difference(learner, rollout) < 1e-5
    values = learner.evaluate(rollout)[0].view_as(rollout.values)
    torch.testing.assert_close(values[rollout.valid], rollout.values[rollout.valid], atol=1e-5, rtol=0)
    assert learner.update(rollout).stale_log_prob < 1e-5


def test_the_known_mistakes_are_caught() -> None:
    learner, rollout = _recall(AutoresetMode.SAME_STEP, skip=2)
    forgotten = tuple(torch.ones_like(mask) for mask in rollout.masks)
    never = torch.zeros_like(rollout.starts)
    late = torch.cat([never[:1], rollout.starts[:-1]])
    empty = tuple(torch.zeros_like(part) for part in rollout.state)
    for mistake in ({"masks": forgotten}, {"starts": never}, {"starts": late}, {"state": empty}):
        assert _difference(learner, replace(rollout, **mistake)) > 1e-3, list(mistake)


def test_conditional_heads_are_recomputed_and_always_legal() -> None:
    torch.manual_seed(0)
    environments = FakeGrowth(40)
    network = GrowthNetwork(environments.config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    rollout, _ = Collector(environments, network, gamma=1.0, seed=0).collect(250)
    assert environments.actions_taken == 10_000
    learner = PPOLearner(network, PPOConfig(), seed=0)
    assert _difference(learner, rollout) < 1e-5
    forgotten = tuple(torch.ones_like(mask) for mask in rollout.masks)
    assert _difference(learner, replace(rollout, masks=forgotten)) > 0.1


def test_garbage_in_padding_changes_nothing() -> None:
    digests = set()
    for poison in (0.0, 1e3, -1e6):
        learner, rollout = _recall(AutoresetMode.NEXT_STEP)
        padding = ~rollout.valid
        assert padding.any()
        poisoned = replace(
            rollout,
            observation={"obs": rollout.observation["obs"].masked_fill(padding[..., None], poison)},
            **{
                name: getattr(rollout, name).masked_fill(padding, poison)
                for name in ("rewards", "values", "next_values", "log_probs")
            },
        )
        report = learner.update(poisoned)
        assert np.isfinite(report.policy_loss)
        digests.add(weights_digest(learner.network))
    assert len(digests) == 1
