"""Growing hosts as the learner's :class:`~esper.simic.collect.RolloutEnvironments`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from esper.leyline import ActionSpace, Decision, EnvView, FactoredAction
from esper.simic.collect import MaskedObservation, VectorStep
from esper.simic.mdp import GrowthMDP, StepOutcome, episode_seed
from esper.tamiyo.batch import mask_tables, observe
from esper.tamiyo.heads import growth_heads
from esper.tamiyo.masks import to_action
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.recurrent import acting_macs
from esper.tolaria.legality import why_illegal
from esper.tolaria.nested import State, join, plain_state, split


@dataclass(frozen=True, slots=True)
class Choices:
    """Of N actions ``[N, heads]``: which heads their ops consumed, and how many choices each had of how many."""

    consumed: Tensor
    legal: Tensor
    of: tuple[int, ...]

    @property
    def restricted(self) -> Tensor:
        """Where a mask forbade something."""
        return self.consumed & (self.legal < torch.tensor(self.of))

    @property
    def forced(self) -> Tensor:
        """Where one choice was left, of several."""
        return self.consumed & (self.legal == 1) & (torch.tensor(self.of) > 1)


@dataclass(frozen=True, slots=True)
class Played:
    """One step of all envs, for those who watch."""

    actions: tuple[FactoredAction, ...]
    choices: Choices
    outcomes: tuple[StepOutcome, ...]


class Watcher(Protocol):
    """Is told of every step."""

    def step(self, played: Played) -> None:
        """After a step of all envs."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Which hosts start an episode: ``rows`` of them, out of ``pool`` that come round again (0: never the same)."""

    rows: int
    seed: int
    pool: int = 0

    def seeds(self, episode: int) -> list[int]:
        """Seeds of episode number ``episode``, one per env; they follow from the run's seed alone."""
        turns = (episode * self.rows + row for row in range(self.rows))
        return [episode_seed(self.seed, turn % self.pool if self.pool else turn) for turn in turns]


class GrowthEnvironments:
    """Episodes of one length in ``size`` envs, in step. When they have ended, :meth:`begin` starts the next ones.

    Seeds follow from the run's seed, env and episode alone. ``illegal`` counts illegal actions; it stays 0.
    """

    def __init__(
        self,
        mdp: GrowthMDP,
        space: ActionSpace,
        network: GrowthNetwork,
        plan: Hosts,
        watcher: Watcher,
    ) -> None:
        self.mdp, self.space, self.size, self.hosts = mdp, space, plan.rows, plan
        self.heads = growth_heads(space)
        self.episode = 0
        self.actions = 0
        self.illegal = 0
        self._network = network
        self._watcher = watcher
        self._acting_macs: int | None = None
        self._masks: tuple[Tensor, ...] = ()
        self._handed_over = 0.0

    def reset(self, seed: int) -> MaskedObservation:
        """Start the present episode in every env. ``seed`` is the learner's; episodes follow from the run's."""
        return self.begin(self.episode)

    def begin(self, episode: int) -> MaskedObservation:
        """Start episode number ``episode`` in every env."""
        self.episode = episode
        return self._seen(self.mdp.begin(self.hosts.seeds(episode), episode))

    def state(self) -> State:
        """The MDP and what was counted, between two steps."""
        own = {"episode": self.episode, "actions": self.actions, "illegal": self.illegal}
        return join({"own": plain_state(own), "world": self.mdp.state()})

    def load(self, state: Mapping[str, Any]) -> MaskedObservation:
        """Undo of :meth:`state`; what the envs show."""
        parts = split(state, "own", "world")
        own = parts["own"]["plain"]
        self.episode, self.actions, self.illegal = own["episode"], own["actions"], own["illegal"]
        self.mdp.load(parts["world"])
        return self._seen(self.mdp.views)

    @property
    def acting_macs(self) -> int:
        """Multiply-accumulates of choosing one action in one environment."""
        if self._acting_macs is None:
            seen = observe(self.mdp.views, self.space, self._network.config)
            self._acting_macs = acting_macs(self._network, seen)
        return self._acting_macs

    def step(self, actions: Tensor) -> VectorStep:
        """One epoch of every env. After the last one ``seen`` is what was seen last."""
        policy_seconds = (time.perf_counter() - self._handed_over) / self.size
        chosen = [to_action(self.space, indices) for indices in actions.tolist()]
        self.actions += len(chosen)
        self.illegal += sum(
            why_illegal(view, action) is not None for view, action in zip(self.mdp.views, chosen, strict=True)
        )
        decisions = [Decision(action, "the learner's draw", macs=self.acting_macs) for action in chosen]
        choices = self._choices(actions)
        outcomes = self.mdp.step(decisions, policy_seconds)
        self._watcher.step(Played(tuple(chosen), choices, tuple(outcomes)))
        ended = torch.tensor([outcome.ended for outcome in outcomes])
        return VectorStep(
            seen=self._seen([outcome.view for outcome in outcomes]),
            rewards=torch.tensor([outcome.paid.total for outcome in outcomes], dtype=torch.float64),
            terminated=ended,
            ended=ended,
            starts=ended,
            valid=torch.ones(self.size, dtype=torch.bool),
        )

    def _seen(self, views: Sequence[EnvView]) -> MaskedObservation:
        self._masks = mask_tables(views, self.space)
        seen = MaskedObservation(observe(views, self.space, self._network.config), self._masks)
        self._handed_over = time.perf_counter()
        return seen

    def _choices(self, actions: Tensor) -> Choices:
        rows = torch.arange(len(actions))
        counts = []
        for mask in self._masks:
            context = [actions[:, j] if size > 1 else 0 for j, size in enumerate(mask.shape[1:-1])]
            counts.append(mask[(rows, *context)].sum(-1))
        consumed = self.heads.relevance()[actions[:, 0]]
        return Choices(consumed, torch.stack(counts, -1), self.heads.sizes)
