"""The learner on any Gymnasium vector environment with ``Discrete`` or ``MultiDiscrete`` actions. Masks are those of
:mod:`esper.simic.gym_masks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esper.leyline import MissingExtraError, UsageError
from esper.simic.collect import Collector, EpisodeStats, MaskedObservation, VectorStep
from esper.simic.gym_masks import flat_masks, info_masks, method_masks
from esper.simic.ppo import PPOConfig, PPOLearner, UpdateReport
from esper.tamiyo.distribution import FactoredDistribution
from esper.tamiyo.heads import Heads, independent_heads
from esper.tamiyo.normalise import RunningNorm
from esper.tamiyo.recurrent import Observation, PolicyNetwork, State, linear

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

Array = npt.NDArray[Any]


class FlatNetwork(PolicyNetwork):
    """Fully connected tanh layers over a flat observation ``obs`` ``[B, width]``, memory, one linear layer per head."""

    def __init__(self, width: int, heads: Heads, hidden: tuple[int, ...] = (64, 64), cells: int = 0) -> None:
        widths = (width, *hidden)
        super().__init__(widths[-1], cells)
        self.normalisers["obs"] = RunningNorm(width)
        layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (linear(a, b), nn.Tanh())]
        self.trunk = nn.Sequential(*layers)
        self.outs = nn.ModuleList(linear(self.core_width, size, gain=0.01) for size in heads.sizes)

    def encode(self, observation: Observation) -> tuple[Tensor, ...]:
        """Features alone."""
        return (self.trunk(self.normalisers["obs"](observation["obs"])),)

    def score(self, core: Tensor, encoded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One table ``[B, n]`` per head."""
        return tuple(out(core) for out in self.outs)


class GymEnvironments:
    """A Gymnasium vector environment as :class:`~esper.simic.collect.RolloutEnvironments`.

    Both automatic reset modes are understood: in ``SAME_STEP`` the final observation is read from ``info``; in
    ``NEXT_STEP`` (Gymnasium's default) the step that only resets is no transition and is dropped.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        modes = _gymnasium().vector.AutoresetMode
        self.envs = envs
        self.size = envs.num_envs
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (modes.SAME_STEP, modes.NEXT_STEP):
            raise UsageError(f"the vector environment's autoreset_mode is {mode}; SAME_STEP or NEXT_STEP is needed")
        self._same_step = mode is modes.SAME_STEP
        self.heads, self._offset = _heads_of(envs.single_action_space)
        self._flatten, self.width = _flattener(envs.single_observation_space)
        self._masks = method_masks(envs)
        self._told = False
        """Whether masks are in ``info`` alone."""
        self._late = np.zeros(self.size, dtype=bool)

    def reset(self, seed: int) -> MaskedObservation:
        """Start an episode everywhere."""
        observation, info = self.envs.reset(seed=seed)
        self._late = np.zeros(self.size, dtype=bool)
        self._told = self._masks is None and info_masks(self.envs, info)
        return self._seen(observation, info)

    def step(self, actions: Tensor) -> VectorStep:
        """One step; ``actions`` ``[N, heads]``."""
        choices = actions.numpy() + self._offset
        if len(self.heads) == 1 and self.envs.single_action_space.shape == ():
            choices = choices[:, 0]
        observation, rewards, terminated, truncated, info = self.envs.step(choices)
        if not isinstance(info, dict):
            raise UsageError(
                f"the vector environment's info is a {type(info).__name__}; Gymnasium's dictionary is needed"
            )
        late, ended = self._late, terminated | truncated
        final = None
        if self._same_step:
            starts = ended
            if ended.any():
                final = {"obs": self._finals(observation, info, ended)}
        else:
            starts, self._late = late, ended
        return VectorStep(
            seen=self._seen(observation, info),
            rewards=torch.as_tensor(np.asarray(rewards, dtype=np.float64)),
            terminated=torch.as_tensor(np.asarray(terminated)),
            ended=torch.as_tensor(ended),
            starts=torch.as_tensor(starts),
            valid=torch.as_tensor(~late),
            final=final,
        )

    def flat(self, observation: Any) -> Tensor:
        """A batch of observations as ``[B, width]``."""
        return torch.as_tensor(self._flatten(observation), dtype=torch.float32)

    def _seen(self, observation: Any, info: dict[str, Any]) -> MaskedObservation:
        masks = self.heads.all_legal(self.size)
        if self._masks is not None or self._told:
            rows = info["action_mask"] if self._masks is None else self._masks()
            flat = torch.as_tensor(flat_masks(rows, self.size, self.heads.sizes))
            # the action that a reset ignores may be anything
            flat = flat | torch.as_tensor(self._late)[:, None]
            masks = torch.split(flat, list(self.heads.sizes), dim=1)
        return MaskedObservation({"obs": self.flat(observation)}, masks)

    def _finals(self, observation: Any, info: dict[str, Any], ended: Array) -> Tensor:
        """What was seen last where an episode ended; the new episode's observation elsewhere."""
        # a tensor of floats may share the memory of the observation
        final, space = self.flat(observation).clone(), self.envs.single_observation_space
        utils = _gymnasium().vector.utils
        for row in ended.nonzero()[0]:
            alone = utils.concatenate(space, [info["final_obs"][row]], utils.create_empty_array(space, 1))
            final[row] = self.flat(alone)[0]
        return final


@dataclass(frozen=True, slots=True)
class LearnProgress:
    """After one update: transitions made so far, the episodes that finished, and what the update measured."""

    steps: int
    episodes: list[EpisodeStats]
    report: UpdateReport


class GymPolicyAdapter:
    """Network, collector and learner for one vector environment.

    ``steps`` per environment and rollout; ``cells`` 0 for a policy without memory. Same seed, same weights.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        config: PPOConfig,
        steps: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        cells: int = 0,
        seed: int = 0,
    ) -> None:
        self.environments = GymEnvironments(envs)
        self.steps = steps
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            self.network = FlatNetwork(self.environments.width, self.environments.heads, hidden, cells)
        self.learner = PPOLearner(self.network, config, seed)
        self.collector = Collector(self.environments, self.network, config.gamma, seed)

    def learn(
        self,
        total_steps: int,
        on_update: Callable[[LearnProgress], bool] | None = None,
        lr_schedule: Callable[[float], float] = lambda progress: 1.0,
    ) -> int:
        """Collect and update until ``total_steps`` transitions were made or ``on_update`` answers True; steps made.

        ``lr_schedule`` maps progress in [0, 1) to a multiple of the learning rate.
        """
        made = 0
        while made < total_steps:
            scale = lr_schedule(made / total_steps)
            rollout, episodes = self.collector.collect(self.steps)
            made += int(rollout.valid.sum())
            report = self.learner.update(rollout, scale)
            if on_update is not None and on_update(LearnProgress(made, episodes, report)):
                break
        return made

    @torch.no_grad()
    def values(self, observation: Any) -> Array:
        """V of first observations of an episode, ``[B]``."""
        rows = self.environments.flat(observation)
        return self.network.values({"obs": rows}, self.network.initial_state(len(rows))).numpy()

    @torch.no_grad()
    def act(
        self, seen: MaskedObservation, state: State, starts: Tensor, uniforms: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Actions ``[B, heads]`` and the next state: the likeliest choices, or drawn with ``uniforms``."""
        output, state = self.network.step(seen.observation, state, starts)
        distribution = FactoredDistribution(self.environments.heads, output.logits, seen.masks)
        actions, _ = distribution.mode() if uniforms is None else distribution.sample(uniforms)
        return actions, state


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("learning in Gymnasium environments", "rl") from error
    return gymnasium


def _heads_of(space: gymnasium.Space[Any]) -> tuple[Heads, Array]:
    """Heads of an action space, and the number of each head's first choice."""
    spaces = _gymnasium().spaces
    if isinstance(space, spaces.Discrete):
        return independent_heads([int(space.n)], ["action"]), np.array([int(space.start)])
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return independent_heads([int(n) for n in space.nvec]), space.start
    raise UsageError(f"action space {space}; Discrete or one-dimensional MultiDiscrete is needed")


def _flattener(space: gymnasium.Space[Any]) -> tuple[Callable[[Any], Array], int]:
    """A function from a batch of observations to ``[N, width]``, and the width. Choices become one-hot; the parts of a
    dictionary or a tuple stand one behind the other.
    """
    spaces = _gymnasium().spaces
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        width = int(np.prod(space.shape))
        return lambda batch: np.reshape(batch, (len(batch), width)), width
    if isinstance(space, spaces.Discrete):
        table = np.eye(int(space.n))
        return lambda batch: table[np.asarray(batch) - space.start], len(table)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        tables = [np.eye(int(n)) for n in space.nvec]

        def flatten(batch: Array) -> Array:
            columns = (np.asarray(batch) - space.start).T
            return np.concatenate([table[column] for table, column in zip(tables, columns, strict=True)], axis=1)

        return flatten, sum(map(len, tables))
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        named = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        parts = {name: _flattener(part) for name, part in named.items()}
        return (
            lambda batch: np.concatenate([flatten(batch[name]) for name, (flatten, _) in parts.items()], axis=1),
            sum(width for _, width in parts.values()),
        )
    raise UsageError(
        f"observation space {space}; Box, MultiBinary, Discrete, one-dimensional MultiDiscrete, or a Dict or Tuple of "
        "them is needed"
    )
