"""What an update reports, refuses, and keeps still; the arithmetic itself is compared with SB3 in ``conformance``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.kasmina.macs import counted
from esper.leyline import DataError, UsageError
from esper.simic.adapter import FlatNetwork
from esper.simic.buffer import Rollout
from esper.simic.collect import Collector, MaskedObservation, VectorStep
from esper.simic.ppo import PPOConfig, PPOLearner
from esper.tamiyo.heads import Heads

HEADS = Heads(("op", "slot"), (2, 3), (0, 1), ((True, False), (True, True)))


class Bandit:
    """Op 1 with slot 2 pays 1. One row in four may only do op 0, and slot 0 is never legal."""

    def __init__(self, size: int = 8, reward: float = 1.0) -> None:
        self.heads, self.size, self.reward = HEADS, size, reward

    def reset(self, seed: int) -> MaskedObservation:
        self.clock = 0
        return self._seen()

    def step(self, actions: Tensor) -> VectorStep:
        self.clock += 1
        rewards = self.reward * ((actions[:, 0] == 1) & (actions[:, 1] == 2)).double()
        ended = torch.full((self.size,), self.clock % 3 == 0)
        yes = torch.ones(self.size, dtype=torch.bool)
        return VectorStep(self._seen(), rewards, ended, ended, ended, yes)

    def _seen(self) -> MaskedObservation:
        forced = torch.arange(self.size) % 4 == 0
        op = torch.ones(self.size, 2, dtype=torch.bool)
        op[forced, 1] = False
        slot = torch.tensor([False, True, True]).expand(self.size, 1, 3)
        return MaskedObservation({"obs": torch.full((self.size, 1), float(self.clock % 3))}, (op, slot))


def _learner(config: PPOConfig | None = None, seed: int = 0, **bandit: Any) -> tuple[PPOLearner, Rollout]:
    config = config or PPOConfig()
    torch.manual_seed(seed)
    environments = Bandit(**bandit)
    network = FlatNetwork(1, HEADS, (4,), cells=4)
    rollout, _ = Collector(environments, network, config.gamma, seed).collect(6)
    return PPOLearner(network, config, seed), rollout


def test_what_learning_took_is_counted() -> None:
    """Beside it: what a counter sees when the whole rollout really goes through, three times for each with a way
    back."""
    learner, rollout = _learner(PPOConfig(epochs=3, minibatches=2, target_kl=None))
    forward = counted(lambda: learner.evaluate(rollout))
    last = counted(lambda: learner.network.values({"obs": rollout.observation["obs"][0]}, rollout.state))
    assert forward > 0 and last > 0
    assert learner.update(rollout).update_macs == 3 * 3 * forward + last
    stopping = replace(learner.config, target_kl=1e-12, minibatches=1)
    again = PPOLearner(learner.network, stopping, 0)
    report = again.update(rollout)
    assert report.stopped_by_kl and report.update_macs == 3 * (report.optimizer_steps) * forward + forward + last


def test_entropy_is_reported_where_there_was_a_choice() -> None:
    learner, rollout = _learner()
    report = learner.update(rollout)
    op, slot = report.heads["op"], report.heads["slot"]
    # means of logarithms in single precision
    assert op.most == pytest.approx(math.log(2), rel=1e-5) and slot.most == pytest.approx(math.log(2), rel=1e-5)
    assert 0.9 * math.log(2) < op.entropy <= math.log(2) + 1e-5
    assert op.share == pytest.approx(0.75)
    assert slot.share == pytest.approx(float((rollout.actions[..., 0] == 1).float().mean()), rel=1e-5)


def test_a_head_without_a_choice_is_missing_not_zero() -> None:
    learner, rollout = _learner()
    only_waiting = tuple(mask.clone() for mask in rollout.masks)
    only_waiting[0][..., 1] = False
    waiting = replace(rollout, masks=only_waiting, actions=torch.zeros_like(rollout.actions))
    waiting = replace(waiting, log_probs=torch.zeros_like(rollout.log_probs))
    report = learner.update(waiting)
    assert report.heads == {}
    assert report.entropy == 0.0
    assert (report.ratio_min, report.ratio_max, report.kl) == (1.0, 1.0, 0.0)


def test_the_report_of_a_first_pass() -> None:
    config = PPOConfig(epochs=1)
    learner, rollout = _learner(config)
    report = learner.update(rollout, lr_scale=0.5)
    assert report.lr == pytest.approx(config.learning_rate / 2)
    assert (report.steps, report.epochs_run, report.optimizer_steps, report.skipped_steps) == (48, 1, 1, 0)
    assert report.update_time_ms > 0
    # collected step by step, learnt from all at once: other kernels, some roundings of 6e-8 apart
    assert report.stale_log_prob < 1e-5 and report.clip_fraction == 0 and report.kl < 1e-6
    assert report.grad_norm is not None and report.grad_norm > 0
    assert not report.stopped_by_kl
    payload = report.payload()
    assert {"lr", "grad_norm", "update_time_ms"} <= payload.keys()
    assert payload["heads"]["op"].keys() == {"entropy", "most", "share"}


def test_what_was_not_measured_is_missing() -> None:
    learner, rollout = _learner(reward=0.0)
    still = replace(rollout, values=torch.zeros_like(rollout.values), next_values=torch.zeros_like(rollout.values))
    report = learner.update(still)
    assert report.explained_variance is None
    assert "explained_variance" not in report.payload()


@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_guard_stops_on_the_ratio_of_the_loss(minibatches: int) -> None:
    config = PPOConfig(epochs=50, learning_rate=0.05, target_kl=0.01, minibatches=minibatches)
    learner, rollout = _learner(config)
    report = learner.update(rollout)
    assert report.stopped_by_kl and report.epochs_run < 50
    # the step after the excess is not made: the KL of the last minibatch is of the weights that remain
    assert report.optimizer_steps < report.epochs_run * minibatches
    assert report.ratio_max > 1.01
    unguarded, rollout = _learner(replace(config, target_kl=None))
    assert unguarded.update(rollout).optimizer_steps == 50 * minibatches


def test_an_update_that_is_not_finite_leaves_weights_and_scale_alone() -> None:
    learner, rollout = _learner()
    before = [tensor.clone() for tensor in learner.network.state_dict().values()]
    rewards = rollout.rewards.clone()
    rewards[0, 0] = float("inf")
    report = learner.update(replace(rollout, rewards=rewards))
    assert report.skipped_steps == 4 and report.optimizer_steps == 0
    assert report.grad_norm is None
    assert all(torch.equal(a, b) for a, b in zip(before, learner.network.state_dict().values(), strict=True))


def test_normalisers_stand_still_between_updates() -> None:
    learner, rollout = _learner(PPOConfig(normalise_observations=True))
    network = learner.network
    values, evaluated = learner.evaluate(rollout)
    torch.testing.assert_close(evaluated.log_prob.view_as(rollout.log_probs), rollout.log_probs, atol=1e-5, rtol=0)
    assert network.normalisers["obs"].count == 0 and network.value_head.returns.count == 0
    learner.update(rollout)
    assert network.normalisers["obs"].count == 48 and network.value_head.returns.count == 48
    saved = {name: buffer.clone() for name, buffer in network.named_buffers()}
    learner.evaluate(rollout)
    assert all(torch.equal(saved[name], buffer) for name, buffer in network.named_buffers())


@settings(max_examples=6)
@given(st.floats(1e-3, 1e4))
def test_learning_does_not_depend_on_the_unit_of_rewards(unit: float) -> None:
    reports = []
    for scale in (1.0, unit):
        learner, rollout = _learner()
        # as collected, but with values and rewards in another unit
        factor = scale / rollout.rewards.max()
        reports.append(
            learner.update(
                replace(
                    rollout,
                    rewards=rollout.rewards * factor,
                    values=torch.zeros_like(rollout.values),
                    next_values=torch.zeros_like(rollout.values),
                )
            )
        )
    assert reports[0].policy_loss == pytest.approx(reports[1].policy_loss, abs=1e-3)
    assert reports[0].explained_variance == pytest.approx(reports[1].explained_variance, abs=1e-3)


def test_state_continues_bit_for_bit() -> None:
    config = PPOConfig(minibatches=2, normalise_observations=True)
    learner, rollout = _learner(config)
    learner.update(rollout)
    state = learner.state()
    expected = learner.update(rollout)
    other, _ = _learner(config, seed=5)
    other.load(state)
    resumed = other.update(rollout)
    assert replace(resumed, update_time_ms=0.0) == replace(expected, update_time_ms=0.0)
    for name, tensor in learner.state()["tensors"].items():
        assert torch.equal(tensor, other.state()["tensors"][name]), name


def test_a_rollout_that_cannot_be_learnt_from_is_refused() -> None:
    learner, rollout = _learner(PPOConfig(minibatches=9))
    with pytest.raises(UsageError, match="minibatches is 9, and there are 8 environments"):
        learner.update(rollout)
    with pytest.raises(DataError, match="without a single transition"):
        learner.update(replace(rollout, valid=torch.zeros_like(rollout.valid)))


def test_a_minibatch_of_padding_alone_is_passed_over() -> None:
    learner, rollout = _learner(PPOConfig(minibatches=8, epochs=1))
    valid = rollout.valid.clone()
    valid[:, :3] = False
    assert learner.update(replace(rollout, valid=valid)).optimizer_steps == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gamma", 1.1),
        ("gae_lambda", -0.1),
        ("learning_rate", 0.0),
        ("max_grad_norm", 0.0),
        ("clip", 1.0),
        ("epochs", 0),
        ("minibatches", 0),
        ("value_coefficient", -1.0),
        ("entropy_coefficient", -1.0),
        ("target_kl", 0.0),
        ("gamma", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{field} is .*; it must be"):
        PPOConfig(**{field: value})  # type: ignore[arg-type]
