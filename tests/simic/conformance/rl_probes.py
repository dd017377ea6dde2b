"""Probe environments: so small that the right values are known exactly, vectorised in numpy, either autoreset mode.

Sources: five probes of Andy Jones, "Debugging reinforcement learning systems" (2021); constant reward and Flip for
time limits, where constant reward alone cannot tell V(s_T) from V(s_t); Recall for memory.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

Array = npt.NDArray[Any]


class Probe(VectorEnv[Array, Array, Array]):
    """Vector environment whose subclass says how rows begin, look and advance.

    ``width`` is the length of the observation, ``sizes`` the choices per action head (one head becomes ``Discrete``).
    """

    width = 1
    sizes: tuple[int, ...] = (1,)

    def __init__(self, num_envs: int, autoreset: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": autoreset}
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (self.width,), np.float32)
        self.single_action_space = (
            gym.spaces.Discrete(self.sizes[0]) if len(self.sizes) == 1 else gym.spaces.MultiDiscrete(self.sizes)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rng = np.random.default_rng(0)
        self.clock = np.zeros(num_envs, dtype=int)
        self.ended = np.zeros(num_envs, dtype=bool)

    def begin(self, rows: Array) -> None:
        """Draw the start of an episode for the rows that ``rows`` (bool) marks."""

    def observe(self) -> Array:
        """Observation of every row, ``[num_envs, width]``."""
        return np.zeros((self.num_envs, self.width), dtype=np.float32)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        """Reward, terminated, truncated of one step; ``clock`` counts the steps already made in the episode."""
        raise NotImplementedError

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self._begin(np.ones(self.num_envs, dtype=bool))
        return self.observe(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        late = self.ended.copy()
        reward, terminated, truncated = self.advance(np.asarray(actions))
        self.clock += 1
        reward, terminated, truncated = (np.where(late, 0, x) for x in (reward, terminated, truncated))
        done = terminated.astype(bool) | truncated.astype(bool)
        info: dict[str, Any] = {}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            if done.any():
                info = {"final_obs": np.array([*self.observe(), None], dtype=object)[:-1], "_final_obs": done}
                self._begin(done)
        else:
            self._begin(late)
            self.ended = done
        return self.observe(), reward.astype(float), terminated.astype(bool), truncated.astype(bool), info

    def _begin(self, rows: Array) -> None:
        self.clock[rows] = 0
        self.ended[rows] = False
        self.begin(rows)


class ConstantReward(Probe):
    """Reward 1 for ever, cut by a time limit that the observation does not show: V = 1 / (1 - gamma)."""

    limit = 8

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        never = np.zeros(self.num_envs, dtype=bool)
        return np.ones(self.num_envs), never, self.clock + 1 >= self.limit


class Flip(Probe):
    """Two states that alternate; leaving state 1 pays 1; the episode is cut after each step.

    V(0) = gamma V(1) and V(1) = 1 + gamma V(0), so at gamma 0.9 V = (4.737, 5.263). Bootstrapping from s_t instead of
    s_T gives (0, 10), no bootstrap (0, 1).
    """

    width = 2

    def begin(self, rows: Array) -> None:
        if not hasattr(self, "state"):
            self.state = np.zeros(self.num_envs, dtype=int)
        self.state[rows] = self.rng.integers(0, 2, rows.sum())

    def observe(self) -> Array:
        return np.eye(2, dtype=np.float32)[self.state]

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        reward = self.state.astype(float)
        self.state = 1 - self.state
        return reward, np.zeros(self.num_envs, dtype=bool), np.ones(self.num_envs, dtype=bool)


class OneValue(Probe):
    """One action, no observation, one step, reward 1: V = 1. Isolates the value loss."""

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        return np.ones(self.num_envs), np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)


class SignValue(Probe):
    """One action, observation +1 or -1, one step, reward equal to it: V(x) = x. Isolates the path to the value."""

    def begin(self, rows: Array) -> None:
        if not hasattr(self, "sign"):
            self.sign = np.ones(self.num_envs)
        self.sign[rows] = self.rng.choice([-1.0, 1.0], rows.sum())

    def observe(self) -> Array:
        return self.sign[:, None].astype(np.float32)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        return self.sign.copy(), np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)


class TwoSteps(Probe):
    """One action, observation 0 then 1, reward 1 after two steps: V(0) = gamma, V(1) = 1. Isolates discounts."""

    def observe(self) -> Array:
        return self.clock[:, None].astype(np.float32)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        last = self.clock >= 1
        return last.astype(float), last, np.zeros(self.num_envs, dtype=bool)


class ChooseSign(Probe):
    """Two actions, no observation, one step, reward +1 for action 1 and -1 for action 0. Isolates the advantage."""

    sizes = (2,)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        return 2.0 * actions - 1.0, np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)


class MatchSign(SignValue):
    """Two actions, observation +1 or -1, one step, reward +1 when the action agrees with it, else -1."""

    sizes = (2,)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        reward = np.where((actions == 1) == (self.sign > 0), 1.0, -1.0)
        return reward, np.ones(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)


class Recall(Probe):
    """A cue per head at the first step, blanks, then the cues must be answered; reward is the share answered right.

    Observation: one-hot cue of each head (first step only), then one flag that asks for the answer.
    """

    def __init__(
        self, num_envs: int, sizes: tuple[int, ...] = (2,), blanks: int = 4, autoreset: Any = AutoresetMode.SAME_STEP
    ) -> None:
        self.sizes = sizes
        self.width = sum(sizes) + 1
        self.blanks = blanks
        self.cue = np.zeros((num_envs, len(sizes)), dtype=int)
        super().__init__(num_envs, autoreset)

    def begin(self, rows: Array) -> None:
        self.cue[rows] = self.rng.integers(0, self.sizes, (rows.sum(), len(self.sizes)))

    def observe(self) -> Array:
        cues = np.concatenate([np.eye(n)[self.cue[:, k]] for k, n in enumerate(self.sizes)], axis=1)
        cues *= (self.clock == 0)[:, None]
        return np.concatenate([cues, (self.clock == self.blanks + 1)[:, None]], axis=1).astype(np.float32)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        asked = self.clock == self.blanks + 1
        right = (actions.reshape(self.cue.shape) == self.cue).mean(1)
        return np.where(asked, right, 0.0), asked, np.zeros(self.num_envs, dtype=bool)


class MaskedRecall(Recall):
    """Recall in which a random half of the wrong choices is illegal at every step. An illegal action is an error."""

    def action_masks(self) -> Array:
        """Legal choices now, ``[num_envs, sum(sizes)]``; the right answer always is."""
        if not hasattr(self, "legal"):
            self._draw()
        return self.legal

    def _draw(self) -> None:
        self.legal = self.rng.random((self.num_envs, sum(self.sizes))) < 0.5
        offsets = np.cumsum([0, *self.sizes[:-1]])
        np.put_along_axis(self.legal, self.cue + offsets, True, axis=1)

    def begin(self, rows: Array) -> None:
        super().begin(rows)
        self._draw()

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        offsets = np.cumsum([0, *self.sizes[:-1]])
        legal = np.take_along_axis(self.legal, actions.reshape(self.cue.shape) + offsets, axis=1)
        assert legal[~self.ended].all(), "illegal action"
        result = super().advance(actions)
        self._draw()
        return result


class RememberedValue(Probe):
    """A sign shown only at the first step is paid at every step; each step cuts with probability 1/4.

    V = sign / (1 - gamma) throughout. The bootstrap must come from the continuing memory: the last observation alone
    says nothing. A fixed limit would never train the memory where it is bootstrapped from.
    """

    def begin(self, rows: Array) -> None:
        if not hasattr(self, "sign"):
            self.sign = np.ones(self.num_envs)
        self.sign[rows] = self.rng.choice([-1.0, 1.0], rows.sum())

    def observe(self) -> Array:
        return np.where(self.clock == 0, self.sign, 0.0)[:, None].astype(np.float32)

    def advance(self, actions: Array) -> tuple[Array, Array, Array]:
        return self.sign.copy(), np.zeros(self.num_envs, dtype=bool), self.rng.random(self.num_envs) < 0.25
