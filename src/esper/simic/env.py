"""Growing hosts as Gymnasium environments, ``esper/Grow-v0`` and ``esper/GrowFlat-v0``, which
``import esper`` registers.

    env = gymnasium.make("esper/Grow-v0", task="digits", episode_length=20)
    envs = gymnasium.make_vec("esper/Grow-v0", num_envs=8, task="digits")

What they share with the tabulated ones: :mod:`esper.simic.gym_host`. ``reset(options={"host": seed})`` begins on the
host of that seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gymnasium.vector import AutoresetMode

from esper.leyline import WAIT, ActionSpace, Decision, EnvView, FactoredAction, TelemetryEvent, UsageError, unknown
from esper.run.assembly import build_paid, workload
from esper.run.config import RunConfig
from esper.simic.gym_host import HostEnv, HostStep, HostVectorEnv, Options, configured
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.rewards import RewardConfig
from esper.simic.workers import WorkerPool
from esper.tamiyo.masks import Availability, availability
from esper.tasks import get_task
from esper.tasks.base import TaskSpec
from esper.tolaria.legality import why_illegal
from esper.tolaria.setup import adamw_options

ENV_ID = "esper/Grow-v0"
FLAT_ID = "esper/GrowFlat-v0"
SEEDS = 2**31
"""Hosts are drawn from seeds below this."""


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
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """AdamW's own parameters, such as ``{"fused": True}``, which is faster and rounds otherwise."""
    device: str = "cpu"

    def mdp(self) -> tuple[GrowthMDP, ActionSpace]:
        """An MDP of this configuration, silent and without a look at the test split, and its action space."""
        if not isinstance(self.optimizer, Mapping):
            raise UsageError(f"optimizer={self.optimizer!r}; legal: AdamW's own parameters, as {{'fused': True}}")
        adamw_options(self.optimizer)  # hosts are made later
        task = get_task(self.task) if isinstance(self.task, str) else self.task
        run = RunConfig(
            max_epochs=self.episode_length,
            slots=self.slots,
            blueprints=self.blueprints,
            max_seeds=self.max_seeds,
            param_budget=self.param_budget,
            generations=self.generations,
            optimizer=dict(self.optimizer),
            device=self.device,
        )
        load = workload(task, run)
        reward = RewardConfig(mode=self.reward) if isinstance(self.reward, str) else self.reward
        pool = WorkerPool.here(lambda emit: build_paid(load, run, emit), _silence)
        mdp = GrowthMDP(pool, task.metric, MDPConfig(load.max_epochs, reward, self.gamma))
        return mdp, ActionSpace(tuple(load.task.sites), load.task.blueprints)


def _silence(event: TelemetryEvent) -> None:
    """Nobody listens."""


class GrowEnv(HostEnv):
    """One growing host. Keywords are the fields of :class:`GrowConfig`; ``actions``: ``heads`` or ``joint``."""

    def __init__(self, render_mode: str | None = None, actions: str = "heads", **config: Any) -> None:
        self.mdp, space = configured(GrowConfig, config).mdp()
        made = {"render_mode": render_mode, "actions": actions, **config}
        super().__init__(space, self.mdp.config.max_epochs, made)
        self._over = True

    @property
    def view(self) -> EnvView | None:
        """After the last epoch."""
        return self.mdp.views[0] if self.mdp.views else None

    @property
    def over(self) -> bool:
        """Whether no episode is under way."""
        return self._over

    def enter(self, options: Options) -> None:
        """A fresh host from a fresh seed, or of the seed ``host``."""
        for name in options:
            if name != "host":
                raise unknown("option of reset", name, ["host"])
        host = options.get("host")
        if host is None:
            host = self.np_random.integers(SEEDS)
        elif isinstance(host, bool) or not isinstance(host, int) or not 0 <= host < 2**63:
            raise UsageError(f"reset: host is {host!r}; legal: a seed from 0 to {2**63 - 1}")
        self.mdp.begin([int(host)])
        self._over = False

    def act(self, action: FactoredAction) -> HostStep:
        """An illegal action is WAIT."""
        why = why_illegal(self.mdp.views[0], action)
        decision = Decision(action, "the agent's choice") if why is None else Decision(WAIT, why)
        (outcome,) = self.mdp.step([decision])
        self._over = outcome.ended
        return HostStep(
            success=outcome.outcome.success,
            why_not=why or outcome.outcome.why_not,
            illegal=why is not None,
            paid=outcome.paid,
            facts={"rolled_back": outcome.report.rolled_back},
        )

    def legal(self) -> tuple[Availability, Sequence[FactoredAction] | None]:
        """Masks say it all."""
        return availability(self.mdp.views[0], self.space), None

    def facts(self) -> Mapping[str, float]:
        """Nothing more."""
        return {}

    def stand(self) -> Any:
        """What is seen, and the whole host where it learns on."""
        return {"views": self.mdp.views, "mdp": None if self.over else self.mdp.state()}

    def go_to(self, stand: Any) -> None:
        """Undo of :meth:`stand`."""
        if stand["mdp"] is not None:
            self.mdp.load(stand["mdp"])
        self.mdp.views, self._over = stand["views"], stand["mdp"] is None


class GrowVectorEnv(HostVectorEnv):
    """N growing hosts. Keywords as those of :class:`GrowEnv`."""

    def __init__(
        self, num_envs: int = 1, autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP, **keywords: Any
    ) -> None:
        super().__init__(GrowEnv, num_envs, autoreset_mode, **keywords)
