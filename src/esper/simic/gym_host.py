"""What all our Gymnasium environments have in common: one growing host, real or tabulated, an epoch a step.

Observation: ``Box(-1, 1)`` of the features of :data:`esper.tamiyo.features.LAYOUT` for host and slots, then for each
slot which blueprint it holds, one-hot with "none" first. Actions: :mod:`esper.simic.gym_actions`. ``step`` is total
over its action space: an illegal action becomes another, ``info["illegal"]`` says so and ``why_not`` why. What is
outside of it, and a step without an episode, is a ``UsageError``. ``info`` holds NumPy's numbers and arrays alone.

An episode ends after a fixed number of epochs in a terminal state (``terminated``); nothing is ever truncated.
``deepcopy`` and ``pickle`` go on where the environment stands, bit for bit.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from esper.leyline import ActionSpace, EnvView, FactoredAction, MissingExtraError, UsageError, unknown
from esper.simic.gym_actions import actions_of
from esper.simic.gym_render import MODES, check_mode, render
from esper.simic.rewards import RewardBreakdown
from esper.tamiyo.features import LAYOUT, encode
from esper.tamiyo.masks import Availability, BoolArray

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
except ImportError as error:
    raise MissingExtraError("the Gymnasium environment", "rl") from error

Floats = npt.NDArray[np.float32]
Info = dict[str, Any]
Options = Mapping[str, Any]
C = TypeVar("C")


def observation_space(space: ActionSpace) -> spaces.Space[Any]:
    """Space of :func:`flat_observation`."""
    width = LAYOUT.width(len(space.slots)) + len(space.slots) * (1 + len(space.blueprints))
    return spaces.Box(-1.0, 1.0, (width,), np.float32)


def flat_observation(view: EnvView, space: ActionSpace) -> Floats:
    """Features, then what each slot holds, one-hot."""
    seen = encode(view, space.slots)
    held = np.eye(1 + len(space.blueprints), dtype=np.float32)[seen.blueprints]
    return np.concatenate([seen.vector, held.ravel()])


def configured(of: type[C], keywords: Mapping[str, Any]) -> C:
    """A configuration of an environment. Raises ``UsageError`` for a keyword that it does not have."""
    names = [each.name for each in fields(of)]  # type: ignore[arg-type]
    for name in keywords:
        if name not in names:
            raise unknown("keyword of the environment", name, [*names, "actions", "render_mode"])
    return of(**keywords)


@dataclass(frozen=True, slots=True)
class HostStep:
    """What a host answered to one action."""

    success: bool
    why_not: str | None
    """What stood against the action."""
    illegal: bool
    """Whether another was taken in its place."""
    paid: RewardBreakdown
    facts: Mapping[str, float]
    """More of ``info``."""


class HostEnv(gymnasium.Env[Floats, Any]):
    """One growing host."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(MODES), "render_fps": 2}  # type: ignore[misc]

    sayable: ClassVar[frozenset[FactoredAction] | None] = None
    """All that can ever be legal, where that is less than the action space says."""

    def __init__(self, space: ActionSpace, length: int, made: dict[str, Any]) -> None:
        """``length``: most epochs of an episode; ``made``: keywords that it was made with."""
        check_mode(made["render_mode"])
        self.space, self.length, self.render_mode = space, length, made["render_mode"]
        self._made = made
        self.actions = actions_of(made["actions"], space, self.sayable)
        self.observation_space = observation_space(space)
        self.action_space = self.actions.space
        self.illegal_actions = 0
        """Actions so far that became another."""
        self.why_not: str | None = None
        """What stood against the last action, in words."""
        self._spec: Any = None

    @property
    @abstractmethod
    def view(self) -> EnvView | None:
        """What is seen now; ``None`` before the first episode."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether no episode is under way."""

    @abstractmethod
    def enter(self, options: Options) -> None:
        """Begin an episode."""

    @abstractmethod
    def act(self, action: FactoredAction) -> HostStep:
        """One epoch."""

    @abstractmethod
    def legal(self) -> tuple[Availability, Sequence[FactoredAction] | None]:
        """What may be done now; one by one where that says more."""

    @abstractmethod
    def facts(self) -> Mapping[str, float]:
        """What ``info`` holds at any time besides what every environment has."""

    @abstractmethod
    def stand(self) -> Any:
        """Where the host stands, as plain data."""

    @abstractmethod
    def go_to(self, stand: Any) -> None:
        """Undo of :meth:`stand`."""

    @property
    def spec(self) -> Any:
        """How it was made; ``max_episode_steps`` is the episode's length, which no wrapper has to enforce."""
        return self._spec

    @spec.setter
    def spec(self, spec: Any) -> None:
        self._spec = None if spec is None else replace(spec, max_episode_steps=self.length)

    def reset(self, *, seed: int | None = None, options: Options | None = None) -> tuple[Floats, Info]:
        """A new episode. ``options``: what the environment lets one choose."""
        super().reset(seed=seed)
        self.why_not = None
        self.enter(options or {})
        return flat_observation(self._seen("reset"), self.space), self._info()

    def step(self, action: Any) -> tuple[Floats, float, bool, bool, Info]:
        """Act, then train for an epoch."""
        self._seen("step")
        if self.over:
            raise UsageError("step: the episode is over; reset() begins another")
        answer = self.act(self.actions.read(action))
        self.why_not = answer.why_not
        self.illegal_actions += answer.illegal
        info = self._info() | _of_numpy(
            {
                "illegal": answer.illegal,
                "success": answer.success,
                "objective": answer.paid.objective,
                **{f"reward_{name}": value for name, value in answer.paid.components.items()},
                **answer.facts,
            }
        )
        return flat_observation(self._seen("step"), self.space), answer.paid.total, self.over, False, info

    def action_masks(self) -> BoolArray:
        """Flat, as the action space has it: what is legal now."""
        self._seen("action_masks")
        return self.actions.mask(*self.legal())

    def render(self) -> Any:
        """In the mode that it was made with."""
        return render(self._seen("render"), self.render_mode)

    def __getstate__(self) -> dict[str, Any]:
        return {"made": self._made, **self._state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state.pop("made"))
        self._restore(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # what it was made with is not copied: tasks and tables never change
        clone = type(self)(**self._made)
        memo[id(self)] = clone
        clone._restore(copy.deepcopy(self._state(), memo))
        return clone

    def _state(self) -> dict[str, Any]:
        # a space draws its seed when it is first sampled from; both are to draw alike
        assert self.action_space.np_random is not None
        own = ("illegal_actions", "why_not", "_spec", "action_space")
        chance = ("_np_random", "_np_random_seed")
        return {name: getattr(self, name) for name in (*own, *chance)} | {"stand": self.stand()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.go_to(state.pop("stand"))
        for name, value in state.items():
            setattr(self, name, value)

    def _seen(self, place: str) -> EnvView:
        if self.view is None:
            raise UsageError(f"{place}: no episode has begun; reset() begins one")
        return self.view

    def _info(self) -> Info:
        view = self._seen("info")
        metric = float("nan") if view.metric is None else view.metric
        info = _of_numpy({"epoch": view.epoch, "metric": metric, **self.facts()})
        return info | {"action_mask": self.action_masks().astype(np.int8)}


def _of_numpy(numbers: Mapping[str, float]) -> Info:
    """Readers of ``info`` ask every value for its ``dtype``."""
    return {name: np.asarray(number)[()] for name, number in numbers.items()}


class HostVectorEnv(SyncVectorEnv):
    """N hosts in one process. Env i of ``reset(seed=s)`` starts as a single one with ``seed=s + i`` does.

    ``autoreset_mode``: ``SAME_STEP``, ``NEXT_STEP`` or ``DISABLED``, where ``reset(options={"reset_mask": ...})``
    begins new episodes. Other options go to every environment that is reset.
    """

    def __init__(self, of: type[HostEnv], num_envs: int, autoreset_mode: str | AutoresetMode, **keywords: Any) -> None:
        modes = {mode.name: mode for mode in AutoresetMode} | {mode.value: mode for mode in AutoresetMode}
        mode = autoreset_mode if isinstance(autoreset_mode, AutoresetMode) else modes.get(autoreset_mode)
        if mode is None:
            raise UsageError(
                f"autoreset_mode={autoreset_mode!r}; legal: {', '.join(mode.name for mode in AutoresetMode)}"
            )
        if num_envs < 1:
            raise UsageError(f"num_envs={num_envs}; at least 1 is needed")
        super().__init__([partial(of, **keywords)] * num_envs, autoreset_mode=mode)

    @property
    def hosts(self) -> list[HostEnv]:
        """The environments, in order."""
        return self.envs  # type: ignore[return-value]

    def step(self, actions: Any) -> Any:
        """One epoch of every host. Raises ``UsageError`` where an episode is over and nobody has begun another."""
        given = np.asarray(actions)
        if given.shape != self.action_space.shape:
            raise UsageError(f"step: actions of shape {given.shape}; legal: {self.action_space.shape}")
        over = [i for i, host in enumerate(self.hosts) if host.over and host.view is not None]
        if self.autoreset_mode is AutoresetMode.DISABLED and over:
            raise UsageError(
                f"step: the episodes of environments {over} are over, and autoreset_mode is DISABLED; "
                'reset(options={"reset_mask": mask}) begins others'
            )
        return super().step(given)

    def action_masks(self) -> BoolArray:
        """``[N, n]``: what is legal now."""
        return np.stack([host.action_masks() for host in self.hosts])
