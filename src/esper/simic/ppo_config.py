"""Configuration of a PPO run, and its presets per task. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from esper.leyline import UsageError
from esper.run.config import AGAIN, CommonConfig, setting

if TYPE_CHECKING:
    from esper.simic.rewards import RewardConfig
    from esper.simic.vectorized import PPOPlan

PRESETS: Final = MappingProxyType[str, Mapping[str, Any]](
    {
        "digits": {"episode_length": 14, "envs": 8, "hosts": 16, "ppo_epochs": 8},
        "digits-colour": {"episode_length": 16, "envs": 8},
        "mnist1d": {"episode_length": 16, "envs": 8},
        "text": {"episode_length": 12, "envs": 4},
        "cifar10": {"episode_length": 12, "envs": 4},
        "diabetes": {"episode_length": 20, "envs": 8},
    }
)
"""Task -> what its runs start from; flags and the configuration file beat it."""


LEARN: Final = "how to learn (presets per task)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PPORunConfig(CommonConfig):
    """A run in which a policy learns by PPO."""

    rounds: int = setting(40, LEARN, "each is one episode in every environment and one update", metavar="N", least=1)
    envs: int = setting(8, LEARN, "environments side by side", metavar="N", least=1)
    workers: int | str = setting(
        1, LEARN, "processes that environments are spread over; or ray, or ray://HOST:PORT", metavar="N"
    )
    """1 is this process alone; Ray's actors: ``ray`` for a Ray of this machine (or that of ``RAY_ADDRESS``). Rollouts
    are the same with any."""
    workers_timeout: float | None = setting(
        None, LEARN, "a worker that is silent for longer fails the run; also how long to wait for a free CPU of Ray's "
        "(default: 25, and no limit to an answer)", metavar="SECONDS", above=0,
    )  # fmt: skip
    episode_length: int | None = setting(None, LEARN, "epochs of an episode", metavar="N", least=1)
    reward: Literal["objective", "simplified", "sparse", "shaped"] = setting(
        "objective", LEARN, "what the policy is paid for"
    )
    rent: float = setting(0.5, LEARN, "for every doubling of the network", metavar="POINTS")
    rent_on: Literal["parameters", "macs"] = setting("parameters", LEARN, "what is doubled")
    control: bool = setting(True, LEARN, "do not pay relative to static hosts")
    """Whether the static host's progress with the same seed is subtracted from the reward: as long as a seed learns
    behind the host, what it is paid is then exactly 0, and hosts that learn well by themselves are no luck."""
    hosts: int = setting(32, LEARN, "distinct hosts to learn on; 0 for ever new", metavar="N", least=0)
    """Each costs one static episode where there is a control."""
    policy_checkpoint: str | None = setting(None, LEARN, "go on from a saved policy", metavar="FILE")
    learning_rate: float = setting(1e-3, LEARN, "of the policy", metavar="RATE")
    entropy: float = setting(0.01, LEARN, "reward per nat of entropy", metavar="X")
    gamma: float = setting(1.0, LEARN, "discount; rewards telescope under it", metavar="X")
    gae_lambda: float = setting(0.95, LEARN, "of generalised advantage estimation", metavar="X")
    ppo_epochs: int = setting(6, LEARN, "passes over a rollout", metavar="N")
    minibatches: int = setting(2, LEARN, "parts of a rollout, an optimizer step each", metavar="N")
    cells: int = setting(64, LEARN, "LSTM cells of the policy; 0 for no memory", metavar="N", least=0)
    checkpoint_every: int = setting(
        20, AGAIN, "steps of the environments between checkpoints; 0 writes one only on SIGTERM or Ctrl-C",
        metavar="N", least=0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        self._check_workers()
        self.plan()
        self.rewards()

    @property
    def episode_epochs(self) -> int | None:
        """See :class:`CommonConfig`."""
        return self.episode_length

    def _check_workers(self) -> None:
        if isinstance(self.workers, int):
            if not 1 <= self.workers <= self.envs:
                raise UsageError(
                    f"workers is {self.workers}; with {self.envs} environments to spread, 1 to {self.envs} is legal"
                )
        elif self.workers != "ray" and not self.workers.startswith("ray://"):
            raise UsageError(f"workers is {self.workers!r}; legal: a number of processes, ray, ray://HOST:PORT")

    def rewards(self) -> RewardConfig:
        """What is paid."""
        from esper.simic.rewards import RewardConfig, RewardMode

        return RewardConfig(RewardMode(self.reward), self.rent, self.rent_on, self.control)

    def plan(self) -> PPOPlan:
        """How long to learn, and how."""
        from esper.simic.ppo import PPOConfig
        from esper.simic.vectorized import PPOPlan

        ppo = PPOConfig(
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            learning_rate=self.learning_rate,
            entropy_coefficient=self.entropy,
            epochs=self.ppo_epochs,
            minibatches=min(self.minibatches, self.envs),
        )
        return PPOPlan(self.rounds, self.envs, self.seed, self.hosts, ppo)
