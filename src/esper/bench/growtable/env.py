"""The table as a Gymnasium environment, ``esper/GrowTable-v0``: ``import esper.bench.growtable.env`` registers it.

    env = gymnasium.make("esper/GrowTable-v0", worlds="training")

Observation, action and reward are those of ``esper/Grow-v0``; a reset draws a world and one of its hosts. An action
that no tabulated sequence takes next is masked. Taken all the same, it becomes what the sequences do without it (WAIT,
or the next gate of a seed), ``info["illegal"]`` says so and ``info["why_not"]`` why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.bench.growtable.host import SPACE, Node, TableHost
from esper.bench.growtable.table import STORED, Table, load_table
from esper.bench.growtable.tabular import TabularWorld
from esper.bench.growtable.worlds import HELD_OUT, TRAINING
from esper.leyline import HEADS, MissingExtraError, UsageError
from esper.simic.env import Floats, Indices, flat_observation, observation_space
from esper.simic.rewards import RewardConfig
from esper.tamiyo.masks import to_action

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.utils import EzPickle
except ImportError as error:
    raise MissingExtraError("the Gymnasium environment", "rl") from error

ENV_ID = "esper/GrowTable-v0"


@dataclass(frozen=True, slots=True)
class GrowTableConfig:
    """What an environment is about."""

    table: str | Path | Table = STORED
    worlds: str | tuple[str, ...] = "training"
    """``training``, ``held-out``, or names."""
    reward: str | RewardConfig = field(default_factory=RewardConfig)
    gamma: float = 1.0

    def hosts(self) -> list[TableHost]:
        """Every host that an episode may start on. Raises ``UsageError`` for a world that the table does not hold."""
        table = (self.table if isinstance(self.table, Table) else load_table(Path(self.table))).whole
        names = worlds_of(self.worlds, table)
        if not names:
            raise UsageError(f"the table holds no world of {self.worlds!r}; it holds {', '.join(table.worlds)}")
        return [host for name in names for host in table.of(name)]


def worlds_of(worlds: str | tuple[str, ...], table: Table) -> tuple[str, ...]:
    """The named worlds, or those of ``training`` or ``held-out`` that the table holds."""
    if isinstance(worlds, str):
        groups = {"training": TRAINING, "held-out": HELD_OUT}
        return tuple(name for name in groups[worlds] if name in table.worlds) if worlds in groups else (worlds,)
    return tuple(worlds)


def table_masks(node: Node) -> tuple[npt.NDArray[np.bool_], ...]:
    """Marginal mask of each head, in the order of ``HEADS``."""
    marginals = node.availability.marginals()
    return tuple(marginals[head] for head in HEADS)


class GrowTableEnv(gymnasium.Env[Floats, Indices], EzPickle):
    """One tabulated host an episode. Keywords are the fields of :class:`GrowTableConfig`."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None, **config: Any) -> None:
        EzPickle.__init__(self, render_mode, **config)
        given = GrowTableConfig(**config)
        self.hosts = given.hosts()
        reward = RewardConfig(mode=given.reward) if isinstance(given.reward, str) else given.reward
        self.world = TabularWorld(reward, given.gamma)
        self.space = SPACE
        self.illegal_actions = 0
        """Actions so far that became another."""
        self.render_mode = render_mode
        self.observation_space = observation_space(SPACE)
        self.action_space = spaces.MultiDiscrete(list(SPACE.sizes))

    @property
    def node(self) -> Node:
        """Where the episode is."""
        return self.world.nodes[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """A host drawn from the worlds."""
        super().reset(seed=seed)
        host = self.hosts[int(self.np_random.integers(len(self.hosts)))]
        (view,) = self.world.begin([host])
        return flat_observation(view, SPACE), self._describe()

    def step(self, action: Indices) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Act, then look up the epoch."""
        answer = self.world.step(0, to_action(SPACE, np.asarray(action).tolist()))
        info = self._describe() | {
            "illegal": not answer.held,
            "success": bool(answer.view.last_outcome and answer.view.last_outcome.success),
            "reward_components": dict(answer.paid.components),
            "objective": answer.paid.objective,
        }
        if not answer.held:
            info["why_not"] = f"no tabulated sequence does it next; {answer.taken.op.name} instead"
            self.illegal_actions += 1
        return flat_observation(answer.view, SPACE), answer.paid.total, answer.ended, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Marginal masks of all heads, one after the other."""
        return np.concatenate(table_masks(self.node))

    def _describe(self) -> dict[str, Any]:
        view, host = self.node.view, self.node.host
        masks = tuple(mask.astype(np.int8) for mask in table_masks(self.node))
        info = {"world": host.world.name, "host": host.number, "epoch": view.epoch, "action_mask": masks}
        return info if view.metric is None else info | {"metric": view.metric}


def register() -> None:
    """Make ``esper/GrowTable-v0`` known to Gymnasium; twice is once."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point="esper.bench.growtable.env:GrowTableEnv")


register()
