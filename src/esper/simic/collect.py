"""Collection: a policy acts in N environments for T steps; every step knows the value of what it led to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esper.leyline import DataError, UsageError
from esper.simic.buffer import Rollout, Transition, stack_steps, unstack_steps
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.heads import Heads
from esper.tamiyo.recurrent import PolicyNetwork, State


@dataclass(frozen=True, slots=True)
class MaskedObservation:
    """What N environments show: parts of an observation ``[N, ...]`` and one mask table per head."""

    observation: dict[str, Tensor]
    masks: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class VectorStep:
    """What N environments answered to one step, ``[N]`` each.

    With ``final`` (environments reset within the step that ended): ``starts == ended``, and ``final`` holds what was
    seen last in the rows that ended. Without (they reset in the step after): ``seen`` is what was seen last, and the
    next step is not ``valid`` and starts an episode.
    """

    seen: MaskedObservation
    rewards: Tensor
    terminated: Tensor
    """bool: the state is terminal; nothing would follow. Wins over truncation."""
    ended: Tensor
    """bool: this was the episode's last step, for whatever reason."""
    starts: Tensor
    """bool: ``seen`` is the first observation of an episode."""
    valid: Tensor
    """bool: the step was a transition."""
    final: dict[str, Tensor] | None = None


class RolloutEnvironments(Protocol):
    """N environments behind one seam. ``heads`` says what an action is."""

    heads: Heads
    size: int

    def reset(self, seed: int) -> MaskedObservation:
        """Start an episode in every environment."""

    def step(self, actions: Tensor) -> VectorStep:
        """One step with ``actions`` ``[N, heads]``."""


@dataclass(frozen=True, slots=True)
class EpisodeStats:
    """A finished episode: its undiscounted return in the reward's unit, and its length in steps."""

    environment: int
    episode_return: float
    steps: int


class Collector:
    """Holds what lives between rollouts: the current observation, the memory, and the stream of random numbers.

    The network runs once per step, always on all N rows. ``gamma`` is the discount of a step that is not terminal.
    """

    def __init__(
        self,
        environments: RolloutEnvironments,
        network: PolicyNetwork,
        gamma: float,
        seed: int,
        *,
        seen: MaskedObservation | None = None,
    ) -> None:
        """``seen`` is what environments that are under way show; without it they are reset."""
        self.environments = environments
        self.network = network
        self.gamma = gamma
        self.generator = torch.Generator().manual_seed(seed)
        self.on_step: Callable[[], None] | None = None
        """Called between two steps of a rollout, where the collector can be saved."""
        self.seen = self._checked(environments.reset(seed) if seen is None else seen)
        self.state: State = network.initial_state(environments.size)
        self.starts = torch.ones(environments.size, dtype=torch.bool)
        self._returns = torch.zeros(environments.size, dtype=torch.float64)
        self._lengths = torch.zeros(environments.size, dtype=torch.long)
        self._before = self.state
        """Memory before the rollout under way..."""
        self._taken: list[Transition] = []
        self._values_of_finals: list[Tensor] = []
        self._episodes: list[EpisodeStats] = []
        """...and what it has so far."""

    @torch.no_grad()
    def collect(self, steps: int) -> tuple[Rollout, list[EpisodeStats]]:
        """Act until the rollout has ``steps`` steps. Raises ``DataError`` for what cannot be learnt from, naming the
        environment.
        """
        if steps < 1:
            raise UsageError(f"a rollout of {steps} steps; at least 1 is needed")
        if not self._taken:
            self._before = self.state
        while len(self._taken) < steps:
            step, outcome = self._act()
            self._taken.append(step)
            self._values_of_finals.append(self._value_of_final(outcome))
            self._episodes += self._finished(outcome)
            self.seen, self.starts = self._checked(outcome.seen), outcome.starts
            if self.on_step is not None and len(self._taken) < steps:
                self.on_step()
        taken, values_of_finals, episodes = self._taken, self._values_of_finals, self._episodes
        self._taken, self._values_of_finals, self._episodes = [], [], []
        last = self.network.values(self.seen.observation, self.state)
        following = torch.stack([*(step.values for step in taken[1:]), last])
        led_to_start = torch.stack([*(step.starts for step in taken[1:]), self.starts])
        next_values = torch.where(led_to_start, torch.stack(values_of_finals), following)
        return Rollout.stack(self.environments.heads, taken, next_values, self._before), episodes

    def checkpoint(self) -> dict[str, Tensor]:
        """What lives between steps, the rollout under way included, but for the environments' own state."""
        seen = {f"observation.{name}": part for name, part in self.seen.observation.items()}
        masks = {f"mask.{k}": mask for k, mask in enumerate(self.seen.masks)}
        memory = {f"state.{k}": part for k, part in enumerate(self.state)}
        own = {
            "generator": self.generator.get_state(),
            "starts": self.starts,
            "returns": self._returns,
            "lengths": self._lengths,
        }
        kept = seen | masks | memory | own | self._under_way()
        return {name: part.clone() for name, part in kept.items()}

    def _under_way(self) -> dict[str, Tensor]:
        if not self._taken:
            return {}
        before = {f"rollout.before.{k}": part for k, part in enumerate(self._before)}
        finished = [[each.environment, each.steps] for each in self._episodes]
        return before | {
            **{f"rollout.step.{name}": part for name, part in stack_steps(self._taken).items()},
            "rollout.finals": torch.stack(self._values_of_finals),
            "rollout.returns": torch.tensor([each.episode_return for each in self._episodes], dtype=torch.float64),
            "rollout.episodes": torch.tensor(finished, dtype=torch.long).reshape(-1, 2),
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Undo of :meth:`checkpoint`."""
        observation = {name: saved[f"observation.{name}"].clone() for name in self.seen.observation}
        masks = tuple(saved[f"mask.{k}"].clone() for k in range(len(self.seen.masks)))
        self.seen = MaskedObservation(observation, masks)
        self.state = tuple(saved[f"state.{k}"].clone() for k in range(len(self.state)))
        self.generator.set_state(saved["generator"])
        self.starts = saved["starts"].clone()
        self._returns, self._lengths = saved["returns"].clone(), saved["lengths"].clone()
        self._taken, self._values_of_finals, self._episodes = [], [], []
        if "rollout.finals" in saved:
            prefix = "rollout.step."
            steps = {name.removeprefix(prefix): part for name, part in saved.items() if name.startswith(prefix)}
            self._before = tuple(saved[f"rollout.before.{k}"].clone() for k in range(len(self.state)))
            self._taken = unstack_steps(steps)
            self._values_of_finals = list(saved["rollout.finals"].clone())
            pairs = zip(saved["rollout.episodes"].tolist(), saved["rollout.returns"].tolist(), strict=True)
            self._episodes = [EpisodeStats(row, paid, steps) for (row, steps), paid in pairs]

    def _act(self) -> tuple[Transition, VectorStep]:
        seen, starts = self.seen, self.starts
        output, self.state = self.network.step(seen.observation, self.state, starts)
        distribution = FactoredDistribution(self.environments.heads, output.logits, seen.masks)
        uniforms = torch.rand(len(starts), len(self.environments.heads), generator=self.generator)
        actions, log_probs = distribution.sample(uniforms)
        outcome = self.environments.step(actions)
        self._check_rewards(outcome)
        discounts = torch.where(outcome.terminated, 0.0, self.gamma)
        cuts = outcome.ended | ~outcome.valid
        step = Transition(
            seen.observation,
            seen.masks,
            actions,
            log_probs,
            output.value,
            outcome.rewards.float(),
            discounts,
            starts,
            cuts,
            outcome.valid,
        )
        return step, outcome

    def _value_of_final(self, outcome: VectorStep) -> Tensor:
        """V of what was seen last, from the memory that goes on from it; 0 where nobody asks."""
        asked = outcome.starts & outcome.valid & ~outcome.terminated
        if not asked.any():
            return torch.zeros(len(asked))
        if outcome.final is None:
            row = int(asked.nonzero()[0])
            raise DataError(f"environment {row}: an episode was cut without its final observation")
        return torch.where(asked, self.network.values(outcome.final, self.state), 0.0)

    def _finished(self, outcome: VectorStep) -> list[EpisodeStats]:
        self._returns += torch.where(outcome.valid, outcome.rewards.double(), 0.0)
        self._lengths += outcome.valid
        rows = (outcome.ended & outcome.valid).nonzero().flatten().tolist()
        episodes = [EpisodeStats(row, float(self._returns[row]), int(self._lengths[row])) for row in rows]
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        return episodes

    def _checked(self, seen: MaskedObservation) -> MaskedObservation:
        self.environments.heads.check_masks(seen.masks)
        for name, part in seen.observation.items():
            if part.is_floating_point() and not part.isfinite().all():
                row = int((~part.isfinite()).nonzero()[0, 0])
                raise DataError(f"environment {row}: part {name!r} of the observation is not finite")
        return seen

    def _check_rewards(self, outcome: VectorStep) -> None:
        broken = outcome.valid & ~outcome.rewards.isfinite()
        if broken.any():
            row = int(broken.nonzero()[0])
            raise DataError(f"environment {row}: the reward is {float(outcome.rewards[row])}")


def mean_return(episodes: Sequence[EpisodeStats]) -> float | None:
    """Mean return, ``None`` where no episode finished."""
    return sum(episode.episode_return for episode in episodes) / len(episodes) if episodes else None
