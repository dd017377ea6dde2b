"""Proximal policy optimisation for a recurrent, masked, factored policy.

Schulman et al., "Proximal policy optimization algorithms" (2017), eq. 7 and 9, with one joint ratio over the heads that
each op consumed; clipping, KL guard and every reported figure are of that very ratio. Minibatches are whole rows of
environments, so that memory is unrolled exactly as it was collected.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from esper.leyline import DataError, UsageError
from esper.simic.buffer import Rollout
from esper.simic.gae import gae
from esper.tamiyo.distribution import ActionEvaluation, FactoredDistribution
from esper.tamiyo.recurrent import PolicyNetwork
from esper.tolaria import ledger


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """Settings of the learner. Ranges are checked; a value outside raises ``UsageError``."""

    gamma: float = 1.0
    """Discount per step, in [0, 1]. 1 is right for finite episodes whose rewards telescope to the objective."""
    gae_lambda: float = 0.95
    """Trade of bias for variance in advantages, in [0, 1]."""
    learning_rate: float = 5e-4
    """Adam's step size, above 0."""
    clip: float = 0.2
    """The ratio may move by this much, in (0, 1)."""
    value_coefficient: float = 0.5
    """Weight of the value loss, 0 or more."""
    entropy_coefficient: float = 0.01
    """Reward per nat of joint entropy, 0 or more."""
    epochs: int = 4
    """Passes over a rollout, 1 or more."""
    minibatches: int = 1
    """Parts that the environments are dealt into, 1 or more."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm, above 0."""
    target_kl: float | None = 0.05
    """Nats per step at which an update stops before its next optimiser step, above 0; ``None`` never stops."""
    normalise_advantages: bool = True
    """Advantages of a rollout's valid steps get mean 0 and standard deviation 1."""
    normalise_returns: bool = True
    """Values are learnt on the running scale of returns."""
    normalise_observations: bool = False
    """Observations are put on their running scale; not needed where features are scaled by design."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            self._require(name, 0 <= getattr(self, name) <= 1, "must be in [0, 1]")
        for name in ("learning_rate", "max_grad_norm"):
            self._require(name, getattr(self, name) > 0, "must be above 0")
        for name in ("value_coefficient", "entropy_coefficient"):
            self._require(name, getattr(self, name) >= 0, "must be 0 or more")
        for name in ("epochs", "minibatches"):
            self._require(name, getattr(self, name) >= 1, "must be 1 or more")
        self._require("clip", 0 < self.clip < 1, "must be in (0, 1)")
        self._require("target_kl", self.target_kl is None or self.target_kl > 0, "must be above 0, or nothing")

    def _require(self, name: str, met: bool, rule: str) -> None:
        if not met:
            raise UsageError(f"{name} is {getattr(self, name)}; it {rule}")


@dataclass(frozen=True, slots=True)
class HeadReport:
    """How undecided one head is, over the steps at which its op was chosen and it had at least two legal choices."""

    entropy: float
    """Mean, nats."""
    most: float
    """Mean logarithm of the number of legal choices: what ``entropy`` would be if all were equally likely, nats."""
    share: float
    """Share of valid steps at which the head had a choice."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update measured. Means are over the minibatches that were evaluated; ``None`` was not measured."""

    lr: float
    update_time_ms: float
    steps: int
    """Valid steps in the rollout."""
    epochs_run: int
    optimizer_steps: int
    skipped_steps: int
    """Optimiser steps left out because loss or gradient was not finite."""
    stopped_by_kl: bool
    policy_loss: float
    value_loss: float
    """Mean squared error in units of the returns' squared scale (in squared rewards without normalisation)."""
    entropy: float
    """Joint entropy per step, nats."""
    heads: dict[str, HeadReport]
    """Per head; a head that never had a choice is missing."""
    grad_norm: float | None
    """Mean global norm before clipping."""
    kl: float
    """Mean over the last epoch of E[ratio - 1 - log ratio], nats."""
    clip_fraction: float
    """Share of steps whose ratio lay outside the clip range."""
    ratio_min: float
    ratio_max: float
    stale_log_prob: float
    """Largest |recomputed - stored log-probability| before the first optimiser step: 0 up to rounding, or something
    differs between acting and learning."""
    explained_variance: float | None
    """1 - Var(returns - values) / Var(returns) of the values acted on; ``None`` where returns are constant."""
    value_mean: float
    return_mean: float
    return_std: float
    advantage_mean: float
    """Before normalisation."""
    advantage_std: float
    update_macs: int
    """Multiply-accumulates of learning: values of what came last, minibatches, and their gradients."""

    def payload(self) -> dict[str, Any]:
        """Keys of the ``PPO_UPDATE_COMPLETED`` event; what was not measured is missing."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "heads"}
        heads = {
            name: {"entropy": head.entropy, "most": head.most, "share": head.share} for name, head in self.heads.items()
        }
        return {name: value for name, value in plain.items() if value is not None} | {"heads": heads}


@dataclass(frozen=True, slots=True)
class _Target:
    """What a rollout is learnt towards, ``[T, N]``."""

    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class _Loss:
    """One minibatch. Losses are scalars; the rest is over its valid steps."""

    total: Tensor
    policy: Tensor
    value: Tensor
    log_ratio: Tensor
    entropy: Tensor
    """``[M, heads]``"""
    choices: Tensor

    @property
    def kl(self) -> float:
        return float((self.log_ratio.exp() - 1 - self.log_ratio).mean())


class _Tally:
    """Sums over the minibatches of one update."""

    def __init__(self) -> None:
        self.losses: list[_Loss] = []
        self.kls: list[float] = []
        self.grad_norms: list[float] = []
        self.skipped = 0
        self.forwards = self.backwards = 0
        """Steps of environments that went through the network, and back."""

    def mean(self, name: str) -> float:
        return sum(float(getattr(loss, name)) for loss in self.losses) / len(self.losses)

    def joined(self, name: str) -> Tensor:
        return torch.cat([getattr(loss, name) for loss in self.losses])

    def heads(self, names: tuple[str, ...]) -> dict[str, HeadReport]:
        entropy, choices = self.joined("entropy"), self.joined("choices")
        reports = {}
        for k, name in enumerate(names):
            free = choices[:, k] > 1
            if free.any():
                most = choices[free, k].float().log().mean()
                reports[name] = HeadReport(float(entropy[free, k].mean()), float(most), float(free.float().mean()))
        return reports


class PPOLearner:
    """Owns the optimiser and the order of minibatches; :meth:`update` learns from one rollout."""

    def __init__(self, network: PolicyNetwork, config: PPOConfig, seed: int) -> None:
        self.network = network
        self.config = config
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self._macs: tuple[int, int] | None = None

    def update(self, rollout: Rollout, lr_scale: float = 1.0) -> UpdateReport:
        """Learn from ``rollout`` with ``lr_scale`` times the learning rate.

        Normalisers stand still from the first step of the rollout to the end of the update; the scale of returns moves
        before the first minibatch, which leaves every value what it was. Raises ``DataError`` where no step is valid,
        ``UsageError`` where there are more minibatches than environments.
        """
        started = time.perf_counter()
        config = self.config
        self._check(rollout)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_scale
        lambdas = torch.where(rollout.cuts, 0.0, config.gae_lambda)
        advantages = gae(rollout.rewards, rollout.values, rollout.next_values, rollout.discounts, lambdas)
        returns = advantages + rollout.values
        counted = returns[rollout.valid]
        if config.normalise_returns and counted.isfinite().all():
            self.network.value_head.observe(counted)
        target = _Target(self._normalised(advantages, rollout.valid), returns)
        tally = _Tally()
        epochs, stopped = self._epochs(rollout, target, tally)
        if config.normalise_observations:
            self.network.observe(rollout.observation, rollout.valid)
        elapsed_ms = 1000 * (time.perf_counter() - started)
        return self._report(rollout, advantages, tally, (epochs, stopped, elapsed_ms))

    def state(self) -> dict[str, Any]:
        """``{"tensors": {name: tensor}, "plain": {}}``: network, optimiser (by parameter name), generator."""
        tensors = {f"network.{name}": tensor.clone() for name, tensor in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = value.clone()
        tensors["generator"] = self.generator.get_state()
        return {"tensors": tensors, "plain": {}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned. Raises ``RuntimeError`` where the network has other tensors."""
        tensors: Mapping[str, Tensor] = state["tensors"]
        prefix = "network."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self.network.load_state_dict(own)
        self.optimizer.state.clear()
        for name, parameter in self.network.named_parameters():
            saved = {
                key: tensors[f"optimizer.{name}.{key}"].clone()
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"optimizer.{name}.{key}" in tensors
            }
            if saved:
                self.optimizer.state[parameter] = saved
        self.generator.set_state(tensors["generator"])

    def _check(self, rollout: Rollout) -> None:
        if not rollout.valid.any():
            raise DataError("a rollout without a single transition; there is nothing to learn from")
        if self.config.minibatches > rollout.environments:
            raise UsageError(
                f"minibatches is {self.config.minibatches}, and there are {rollout.environments} environments to deal; "
                "it must not be more"
            )

    def _normalised(self, advantages: Tensor, valid: Tensor) -> Tensor:
        counted = advantages[valid]
        if not self.config.normalise_advantages or len(counted) < 2:
            return advantages
        return (advantages - counted.mean()) / (counted.std() + 1e-8)

    def _epochs(self, rollout: Rollout, target: _Target, tally: _Tally) -> tuple[int, bool]:
        """Epochs begun, and whether the KL guard ended them."""
        limit = self.config.target_kl
        for epoch in range(1, self.config.epochs + 1):
            tally.kls.clear()
            order = torch.randperm(rollout.environments, generator=self.generator)
            for rows in order.chunk(self.config.minibatches):
                loss = self._loss(rollout.select(rows), _Target(target.advantages[:, rows], target.returns[:, rows]))
                if loss is None:
                    continue
                tally.forwards += target.returns[:, rows].numel()
                tally.losses.append(loss)
                tally.kls.append(loss.kl)
                if limit is not None and loss.kl > limit:
                    return epoch, True
                tally.backwards += target.returns[:, rows].numel()
                self._descend(loss.total, tally)
        return epoch, False

    def _descend(self, loss: Tensor, tally: _Tally) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
            tally.grad_norms.append(float(norm))
        else:
            tally.skipped += 1

    def _loss(self, batch: Rollout, target: _Target) -> _Loss | None:
        """Loss of some rows of a rollout, ``None`` where they hold no transition."""
        keep = batch.valid.flatten().nonzero().squeeze(1)
        if len(keep) == 0:
            return None
        output, evaluated = self.evaluate(batch)
        log_ratio = (evaluated.log_prob - batch.log_probs.flatten())[keep]
        advantages = target.advantages.flatten()[keep]
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        policy = -torch.min(advantages * ratio, advantages * clipped).mean()
        error = (output - target.returns.flatten())[keep] / self.network.value_head.scale.float()
        value = error.square().mean()
        entropy = evaluated.entropy[keep]
        total = (
            policy + self.config.value_coefficient * value - self.config.entropy_coefficient * entropy.sum(-1).mean()
        )
        return _Loss(
            total, policy.detach(), value.detach(), log_ratio.detach(), entropy.detach(), evaluated.choices[keep]
        )

    def evaluate(self, rollout: Rollout) -> tuple[Tensor, ActionEvaluation]:
        """V ``[T * N]`` in the reward's unit, and the taken actions under the present policy (B = T * N, time-major).

        The masks and the memory before the first step are those of the rollout.
        """
        output = self.network.unroll(rollout.observation, rollout.state, rollout.starts)
        masks = [mask.flatten(0, 1) for mask in rollout.masks]
        distribution = FactoredDistribution(rollout.heads, output.logits, masks)
        return output.value, distribution.evaluate(rollout.actions.flatten(0, 1))

    def _spent(self, rollout: Rollout, tally: _Tally) -> int:
        if self._macs is None:
            self._macs = _macs_of_one(self.network, rollout)
        forward, value = self._macs
        learning = tally.forwards * forward + tally.backwards * ledger.backward(forward)
        return rollout.environments * value + learning

    def _report(
        self, rollout: Rollout, advantages: Tensor, tally: _Tally, ended: tuple[int, bool, float]
    ) -> UpdateReport:
        epochs, stopped, elapsed_ms = ended
        valid = rollout.valid
        returns = (advantages + rollout.values)[valid]
        spread = returns.var(correction=0)
        unexplained = (advantages[valid]).var(correction=0)
        log_ratio = tally.joined("log_ratio")
        ratio = log_ratio.exp()
        return UpdateReport(
            lr=self.optimizer.param_groups[0]["lr"],
            update_time_ms=elapsed_ms,
            steps=int(valid.sum()),
            epochs_run=epochs,
            optimizer_steps=len(tally.grad_norms),
            skipped_steps=tally.skipped,
            stopped_by_kl=stopped,
            policy_loss=tally.mean("policy"),
            value_loss=tally.mean("value"),
            entropy=float(tally.joined("entropy").sum(-1).mean()),
            heads=tally.heads(rollout.heads.names),
            grad_norm=sum(tally.grad_norms) / len(tally.grad_norms) if tally.grad_norms else None,
            kl=sum(tally.kls) / len(tally.kls),
            clip_fraction=float(((ratio - 1).abs() > self.config.clip).float().mean()),
            ratio_min=float(ratio.min()),
            ratio_max=float(ratio.max()),
            stale_log_prob=float(tally.losses[0].log_ratio.abs().max()),
            explained_variance=float(1 - unexplained / spread) if spread > 0 else None,
            value_mean=float(rollout.values[valid].mean()),
            return_mean=float(returns.mean()),
            return_std=float(spread.sqrt()),
            advantage_mean=float(advantages[valid].mean()),
            update_macs=self._spent(rollout, tally),
            advantage_std=float(unexplained.sqrt()),
        )


def _macs_of_one(network: PolicyNetwork, rollout: Rollout) -> tuple[int, int]:
    """Multiply-accumulates of one step of one environment on its way through the network, and of its value alone."""
    steps = len(rollout.valid)
    one = rollout.select(torch.tensor([0]))
    first = {name: part[0] for name, part in one.observation.items()}
    whole = ledger.count(lambda: network.unroll(one.observation, one.state, one.starts), steps, model=network)
    return whole.forward, ledger.count(lambda: network.values(first, one.state), 1, model=network).forward
