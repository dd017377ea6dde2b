"""Growing hosts as Gymnasium environments, ``esper/Grow-v0``: ``import esper.simic.env`` registers them.

    env = gymnasium.make("esper/Grow-v0", task="digits", episode_length=20)
    envs = gymnasium.make_vec("esper/Grow-v0", num_envs=8, vectorization_mode="vector_entry_point")

Observation: ``Box(-1, 1)`` of the features of :data:`esper.tamiyo.features.LAYOUT` for host and slots, then for each
slot which blueprint it holds, one-hot with "none" first. Action: ``MultiDiscrete`` over ``HEADS``. One step is one
epoch of the host. ``step`` is total: an illegal action becomes WAIT, ``info["illegal"]`` says so, ``info["why_not"]``
why. ``info["action_mask"]`` is what ``action_space.sample(mask)`` takes; ``action_masks()`` is the same, flat, as
sb3-contrib asks for it. These masks are marginal per head: they cannot exclude an illegal pair of op and slot.

An episode ends after a fixed number of epochs in a terminal state (``terminated``); nothing is ever truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.leyline import (
    HEADS,
    WAIT,
    ActionSpace,
    Decision,
    EnvView,
    FactoredAction,
    MissingExtraError,
    TelemetryEvent,
)
from esper.run.assembly import build_paid, workload
from esper.run.config import RunConfig
from esper.simic.mdp import GrowthMDP, MDPConfig, StepOutcome
from esper.simic.rewards import RewardConfig
from esper.simic.workers import WorkerPool
from esper.tamiyo.features import LAYOUT, encode
from esper.tamiyo.masks import availability, to_action
from esper.tasks import get_task
from esper.tasks.base import TaskSpec
from esper.tolaria.legality import why_illegal

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.utils import EzPickle
    from gymnasium.utils.seeding import np_random
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise MissingExtraError("the Gymnasium environment", "rl") from error

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
ENV_ID = "esper/Grow-v0"


@dataclass(frozen=True, slots=True)
class GrowConfig:
    """What an environment is about. ``None`` leaves the choice to the task's preset."""

    task: str | TaskSpec = "digits"
    episode_length: int | None = None
    """Epochs."""
    reward: str | RewardConfig = field(default_factory=RewardConfig)
    gamma: float = 1.0
    """Discount that the learner will use: rewards telescope under it."""
    slots: tuple[str, ...] | None = None
    blueprints: tuple[str, ...] | None = None
    max_seeds: int | None = None
    param_budget: int | None = None
    generations: int = 1
    """Most seeds that a slot keeps, one on top of the other."""
    device: str = "cpu"

    def mdp(self) -> tuple[GrowthMDP, ActionSpace]:
        """An MDP of this configuration, silent and without a look at the test split, and its action space."""
        task = get_task(self.task) if isinstance(self.task, str) else self.task
        run = RunConfig(
            max_epochs=self.episode_length,
            slots=self.slots,
            blueprints=self.blueprints,
            max_seeds=self.max_seeds,
            param_budget=self.param_budget,
            generations=self.generations,
            device=self.device,
        )
        load = workload(task, run)
        reward = RewardConfig(mode=self.reward) if isinstance(self.reward, str) else self.reward
        pool = WorkerPool.here(lambda emit: build_paid(load, run, emit), _silence)
        mdp = GrowthMDP(pool, task.metric, MDPConfig(load.max_epochs, reward, self.gamma))
        return mdp, ActionSpace(tuple(load.task.sites), load.task.blueprints)


def _silence(event: TelemetryEvent) -> None:
    """Nobody listens."""


def observation_space(space: ActionSpace) -> spaces.Space[Any]:
    """Space of :func:`flat_observation`."""
    width = LAYOUT.width(len(space.slots)) + len(space.slots) * (1 + len(space.blueprints))
    return spaces.Box(-1.0, 1.0, (width,), np.float32)


def flat_observation(view: EnvView, space: ActionSpace) -> Floats:
    """Features, then what each slot holds, one-hot."""
    seen = encode(view, space.slots)
    held = np.eye(1 + len(space.blueprints), dtype=np.float32)[seen.blueprints]
    return np.concatenate([seen.vector, held.ravel()])


def head_masks(view: EnvView, space: ActionSpace) -> tuple[npt.NDArray[np.bool_], ...]:
    """Marginal mask of each head, in the order of ``HEADS``."""
    marginals = availability(view, space).marginals()
    return tuple(marginals[head] for head in HEADS)


def as_legal(view: EnvView, space: ActionSpace, indices: Sequence[int]) -> tuple[FactoredAction, str | None]:
    """The action that ``indices`` name, or WAIT and what stood against it."""
    action = to_action(space, indices)
    why = why_illegal(view, action)
    return (action, None) if why is None else (WAIT, why)


class _Shared(EzPickle):
    """What the single and the vector environment have in common: an MDP and the way in and out of it."""

    def __init__(self, num_envs: int, **config: Any) -> None:
        self.num_rows = num_envs
        self.mdp, self.space = GrowConfig(**config).mdp()
        self.illegal_actions = 0
        """Actions so far that became WAIT."""

    def begin(self, seeds: Sequence[int]) -> list[EnvView]:
        return self.mdp.begin(seeds)

    def play(self, actions: Sequence[Sequence[int]]) -> tuple[list[StepOutcome], list[dict[str, Any]]]:
        judged = [as_legal(view, self.space, indices) for view, indices in zip(self.mdp.views, actions, strict=True)]
        decisions = [Decision(action, why or "the agent's choice") for action, why in judged]
        outcomes = self.mdp.step(decisions)
        infos = []
        for (_, why), outcome in zip(judged, outcomes, strict=True):
            info = self.describe(outcome.view) | {
                "illegal": why is not None,
                "success": outcome.outcome.success,
                "reward_components": dict(outcome.paid.components),
                "objective": outcome.paid.objective,
                "rolled_back": outcome.report.rolled_back,
            }
            reason = why or outcome.outcome.why_not
            infos.append(info if reason is None else info | {"why_not": reason})
            self.illegal_actions += why is not None
        return outcomes, infos

    def describe(self, view: EnvView) -> dict[str, Any]:
        """What ``info`` holds at any time."""
        info: dict[str, Any] = {
            "epoch": view.epoch,
            "action_mask": tuple(mask.astype(np.int8) for mask in head_masks(view, self.space)),
        }
        return info if view.metric is None else info | {"metric": view.metric}

    def flat_masks(self) -> npt.NDArray[np.bool_]:
        """``[envs, sum of head sizes]``."""
        return np.stack([np.concatenate(head_masks(view, self.space)) for view in self.mdp.views])


class GrowEnv(gymnasium.Env[Floats, Indices], _Shared):
    """One growing host. Keywords are the fields of :class:`GrowConfig`."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, render_mode, **config)
        _Shared.__init__(self, 1, **config)
        self.render_mode = render_mode
        self.observation_space = observation_space(self.space)
        self.action_space = spaces.MultiDiscrete(list(self.space.sizes))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """A fresh host from a fresh seed."""
        super().reset(seed=seed)
        (view,) = self.begin([int(self.np_random.integers(2**31))])
        return flat_observation(view, self.space), self.describe(view)

    def step(self, action: Indices) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Act, then train for an epoch."""
        (outcome,), (info,) = self.play([np.asarray(action).tolist()])
        return flat_observation(outcome.view, self.space), outcome.paid.total, outcome.ended, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Marginal masks of all heads, one after the other."""
        masks: npt.NDArray[np.bool_] = self.flat_masks()[0]
        return masks


class GrowVectorEnv(VectorEnv[Floats, Indices, npt.NDArray[Any]], _Shared):
    """N growing hosts that step together. All episodes have one length, so that all end and begin together."""

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, num_envs, render_mode, **config)
        _Shared.__init__(self, num_envs, **config)
        self.num_envs = num_envs
        self._generators = [np_random(None)[0] for _ in range(num_envs)]
        self.render_mode = render_mode
        self.single_observation_space = observation_space(self.space)
        self.single_action_space = spaces.MultiDiscrete(list(self.space.sizes))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Fresh hosts from fresh seeds; env i of ``seed=s`` starts as ``GrowEnv.reset(seed=s + i)`` does."""
        if seed is not None:
            given = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            self._generators = [np_random(each)[0] for each in given]
        views = self._begin()
        return self._observe(views), self._infos([self.describe(view) for view in views])

    def step(
        self, actions: Indices
    ) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Act in every env, then train all for an epoch; where episodes ended the new ones begin at once."""
        outcomes, infos = self.play(np.asarray(actions).tolist())
        rewards = np.array([outcome.paid.total for outcome in outcomes])
        ended = np.array([outcome.ended for outcome in outcomes])
        seen = self._observe([outcome.view for outcome in outcomes])
        info = self._infos(infos)
        if ended.all():
            finals = np.empty(self.num_envs, dtype=object)
            finals[:] = list(seen)
            views = self._begin()
            seen = self._observe(views)
            fresh = self._infos([self.describe(view) for view in views])
            info = fresh | {"final_obs": finals, "_final_obs": ended, "final_info": info, "_final_info": ended}
        return seen, rewards, ended, np.zeros_like(ended), info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """``[N, sum of head sizes]``: marginal masks of all heads, one after the other."""
        return self.flat_masks()

    def _begin(self) -> list[EnvView]:
        return self.begin([int(generator.integers(2**31)) for generator in self._generators])

    def _observe(self, views: Sequence[EnvView]) -> Floats:
        return np.stack([flat_observation(view, self.space) for view in views])

    def _infos(self, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for i, info in enumerate(infos):
            joined = self._add_info(joined, info, i)
        return joined


def register() -> None:
    """Make ``esper/Grow-v0`` known to Gymnasium; twice is once."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID, entry_point="esper.simic.env:GrowEnv", vector_entry_point="esper.simic.env:GrowVectorEnv"
        )


register()
