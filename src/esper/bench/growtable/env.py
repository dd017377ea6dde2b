"""The table as Gymnasium environments, ``esper/GrowTable-v0`` and ``esper/GrowTableFlat-v0``, which ``import esper``
registers.

    env = gymnasium.make("esper/GrowTable-v0", worlds="training")
    envs = gymnasium.make_vec("esper/GrowTable-v0", num_envs=16, worlds="training")

Observation, action and reward are those of ``esper/Grow-v0``; a reset draws a world and one of its hosts, or takes
those of ``options={"world": name, "host": number}``. An action that no tabulated sequence takes next is illegal: it
becomes what the sequences do without it (WAIT, or the next gate of a seed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from esper.bench.growtable.host import SPACE, Node, TableHost
from esper.bench.growtable.record import NONE, action_at, coded_action
from esper.bench.growtable.table import STORED, Table, load_table
from esper.bench.growtable.tabular import TabularWorld
from esper.leyline import EnvView, FactoredAction, Op, UsageError, unknown
from esper.simic.gym_host import HostEnv, HostStep, HostVectorEnv, Options, configured
from esper.simic.rewards import RewardConfig
from esper.tamiyo.masks import Availability

ENV_ID = "esper/GrowTable-v0"
FLAT_ID = "esper/GrowTableFlat-v0"


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
        table = (self.table if isinstance(self.table, Table) else _stored(Path(self.table))).whole
        names = worlds_of(self.worlds, table)
        if not names:
            raise UsageError(f"the table holds no world of {self.worlds!r}; it holds {', '.join(table.worlds)}")
        return [host for name in names for host in table.of(name)]


def worlds_of(worlds: str | tuple[str, ...], table: Table) -> tuple[str, ...]:
    """The named worlds, or those of ``training`` or ``held-out`` that the table holds."""
    if isinstance(worlds, str):
        if worlds not in ("training", "held-out"):
            return (worlds,)
        return tuple(n for n in table.worlds if table.of(n)[0].world.held_out == (worlds == "held-out"))
    return tuple(worlds)


def _stored(path: Path) -> Table:
    """Read once: environments of one table share its hosts, which never change."""
    try:
        stat = path.stat()
    except OSError:
        return load_table(path)  # says what is wrong
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> Table:
    return load_table(path)


class GrowTableEnv(HostEnv):
    """One tabulated host an episode. Keywords are the fields of :class:`GrowTableConfig`; ``actions``: ``heads`` or
    ``joint``.
    """

    sayable = frozenset(
        coded_action(op, slot, blueprint)
        for op in (Op.WAIT, Op.GERMINATE, Op.ADVANCE, Op.PRUNE, Op.FOSSILIZE)
        for slot in ((NONE,) if op is Op.WAIT else range(len(SPACE.slots)))
        for blueprint in range(len(SPACE.blueprints))
    )
    """What a sequence can do: germinations have one blend, one target and one tempo, and no seed is retargeted."""

    def __init__(self, render_mode: str | None = None, actions: str = "heads", **config: Any) -> None:
        given = configured(GrowTableConfig, config)
        self.hosts = given.hosts()
        self.worlds = tuple(dict.fromkeys(host.world.name for host in self.hosts))
        """Names; ``info["world"]`` is an index into them."""
        reward = RewardConfig(mode=given.reward) if isinstance(given.reward, str) else given.reward
        self.world = TabularWorld(reward, given.gamma)
        made = {"render_mode": render_mode, "actions": actions, **config}
        super().__init__(SPACE, max(host.world.epochs for host in self.hosts), made)

    @property
    def node(self) -> Node:
        """Where the episode is."""
        return self.world.nodes[0]

    @property
    def view(self) -> EnvView | None:
        """As it was recorded."""
        return self.node.view if self.world.nodes else None

    @property
    def over(self) -> bool:
        """Whether no episode is under way."""
        return not self.world.nodes or self.node.ended

    def enter(self, options: Options) -> None:
        """A host drawn from those that fit the options."""
        hosts = self._fitting(options)
        self.world.begin([hosts[int(self.np_random.integers(len(hosts)))]])

    def act(self, action: FactoredAction) -> HostStep:
        """Look up the epoch."""
        answer = self.world.step(0, action)
        why = None if answer.held else f"no tabulated sequence does it next; {answer.taken.op.name} instead"
        return HostStep(
            success=bool(answer.view.last_outcome and answer.view.last_outcome.success),
            why_not=why,
            illegal=not answer.held,
            paid=answer.paid,
            facts={},
        )

    def legal(self) -> tuple[Availability, Sequence[FactoredAction] | None]:
        """What is held. At the end nothing is, and WAIT stands for it."""
        return self.node.availability, tuple(self.node.held) or (FactoredAction(),)

    def facts(self) -> Mapping[str, float]:
        """Which host it is."""
        host = self.node.host
        return {"world": self.worlds.index(host.world.name), "host": host.number}

    def stand(self) -> Any:
        """The host, and a sequence that leads to where it stands."""
        if not self.world.nodes:
            return None
        return {
            "host": (self.node.host.world.name, self.node.host.number),
            "sequence": self.node.sequences[0],
            "epoch": self.node.epoch,
            "paid": self.world.trackers[0].to_dict(),
        }

    def go_to(self, stand: Any) -> None:
        """Undo of :meth:`stand`."""
        if stand is None:
            return
        (host,) = (each for each in self.hosts if (each.world.name, each.number) == stand["host"])
        self.world.begin([host])
        for _ in range(stand["epoch"]):
            steps = self.node.host.records[stand["sequence"]].steps
            self.world.nodes[0] = self.node.held[action_at(steps, self.node.epoch + 1)]
        self.world.trackers[0].load(stand["paid"])

    def _fitting(self, options: Options) -> list[TableHost]:
        for name in options:
            if name not in ("world", "host"):
                raise unknown("option of reset", name, ["host", "world"])
        world, number = options.get("world"), options.get("host")
        if world is not None and world not in self.worlds:
            raise unknown("world of the environment", str(world), self.worlds)
        of_world = [host for host in self.hosts if world in (None, host.world.name)]
        hosts = [host for host in of_world if number in (None, host.number)]
        if not hosts:
            legal = ", ".join(map(str, sorted({host.number for host in of_world})))
            raise UsageError(f"reset: there is no host {number!r} in {world or 'these worlds'}; legal: {legal}")
        return hosts


class GrowTableVectorEnv(HostVectorEnv):
    """N tabulated hosts. Keywords as those of :class:`GrowTableEnv`."""

    def __init__(
        self, num_envs: int = 1, autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP, **keywords: Any
    ) -> None:
        super().__init__(GrowTableEnv, num_envs, autoreset_mode, **keywords)
