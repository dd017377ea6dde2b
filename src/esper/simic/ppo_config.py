"""Configuration of a PPO run, and its presets per task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from esper.leyline import UsageError
from esper.run.config import RunConfig
from esper.simic.ppo import PPOConfig
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


@dataclass(frozen=True, slots=True)
class PPORunConfig:
    """What a PPO run is asked to do. ``None`` leaves the choice to the task's budget."""

    task: str = "digits"
    rounds: int = 40
    """Each is one episode in every environment and one update."""
    envs: int = 8
    workers: int | str = 1
    """Processes of this machine that the environments are spread over, 1 for this one alone; or Ray's actors: ``ray``
    for a Ray of this machine (or that of ``RAY_ADDRESS``), ``ray://HOST:PORT``. Rollouts are the same with any."""
    episode_length: int | None = None
    """Epochs of the host."""
    reward: str = "objective"
    rent: float = 0.5
    """Points for every doubling of the network."""
    rent_on: str = "parameters"
    control: bool = True
    """Whether the static host's progress with the same seed is subtracted from the reward: as long as a seed learns
    behind the host, what it is paid is then exactly 0, and hosts that learn well by themselves are no luck."""
    hosts: int = 32
    """Distinct hosts to learn on; 0 never uses one twice. Each costs one static episode where there is a control."""
    policy_checkpoint: str | None = None
    """A saved policy to go on from."""
    slots: tuple[str, ...] | None = None
    blueprints: tuple[str, ...] | None = None
    max_seeds: int | None = None
    param_budget: int | None = None
    incubation: str | None = None
    batch_size: int | None = None
    lr: float | None = None
    """Peak learning rate of the hosts."""
    seed_lr_multiplier: float | None = None
    counterfactual_every: int = 1
    learning_rate: float = 1e-3
    """Of the policy."""
    entropy: float = 0.01
    gamma: float = 1.0
    gae_lambda: float = 0.95
    ppo_epochs: int = 6
    minibatches: int = 2
    cells: int = 64
    """LSTM cells; 0 leaves the memory out."""
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    run_dir: str | None = None
    telemetry_level: str = "normal"
    telemetry_lifecycle_only: bool = False
    diagnostics_profile: str | None = None
    diagnostics_every: int = 10
    checkpoint_every: int = 20
    """Steps of the environments between checkpoints; 0 writes one only when the run is interrupted."""
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.cells < 0:
            raise UsageError(f"cells is {self.cells}; it must be 0 or more")
        self._check_workers()
        if self.episode_length is not None and self.episode_length < 1:
            raise UsageError(f"episode_length is {self.episode_length}; it must be 1 or more")
        self.plan()
        self.rewards()
        self.base()

    def _check_workers(self) -> None:
        if isinstance(self.workers, int):
            if not 1 <= self.workers <= self.envs:
                raise UsageError(
                    f"workers is {self.workers}; with {self.envs} environments to spread, 1 to {self.envs} is legal"
                )
        elif self.workers != "ray" and not self.workers.startswith("ray://"):
            raise UsageError(f"workers is {self.workers!r}; legal: a number of processes, ray, ray://HOST:PORT")

    def base(self) -> RunConfig:
        """What an executor is built from."""
        shared = (
            "task", "slots", "blueprints", "max_seeds", "param_budget", "incubation", "batch_size", "lr",
            "seed_lr_multiplier", "counterfactual_every", "seed", "device", "threads", "run_dir", "telemetry_level",
            "telemetry_lifecycle_only", "diagnostics_profile", "diagnostics_every", "checkpoint_every", "quiet",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in shared}
        return RunConfig(policy="ppo", compare=(), max_epochs=self.episode_length, export=False, **values)

    def rewards(self) -> RewardConfig:
        """What is paid."""
        return RewardConfig(self.reward, self.rent, self.rent_on, self.control)  # type: ignore[arg-type]

    def plan(self) -> PPOPlan:
        """How long to learn, and how."""
        ppo = PPOConfig(
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            learning_rate=self.learning_rate,
            entropy_coefficient=self.entropy,
            epochs=self.ppo_epochs,
            minibatches=min(self.minibatches, self.envs),
        )
        return PPOPlan(self.rounds, self.envs, self.seed, self.hosts, ppo)
