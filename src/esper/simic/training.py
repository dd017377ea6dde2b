"""A PPO run from its configuration to the saved policy: who drives the hosts, who learns, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from esper.leyline import ActionSpace, Metric, TelemetryEventType, UsageError
from esper.nissa.console import ConsoleSink, warn
from esper.run.assembly import Workload, build_paid
from esper.run.open import PreparedRun, RunRequest, open_run, prepare
from esper.run.resume import ResumeRequest
from esper.run.session import Session
from esper.simic.event_writer import Hub
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.ppo_config import PRESETS, PPORunConfig
from esper.simic.vectorized import PPORun, RoundReport, fresh_network, saved_network
from esper.simic.workers import EnvFactory, WorkerPool
from esper.simic.workers_process import ProcessWorker
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.policies.learned import load_policy, save_policy

POLICY_FILE: Final = "policy.safetensors"


class PPOTraining:
    """A PPO run that is prepared, or gone on with."""

    def __init__(self, flags: Mapping[str, Any], file: Mapping[str, Any], asked: ResumeRequest | None = None) -> None:
        """Raises ``UsageError`` or ``DataError`` for whatever is wrong with what was asked for."""
        self.ready: PreparedRun[PPORunConfig] = prepare(RunRequest("ppo", PPORunConfig, flags, file, asked, PRESETS))

    @property
    def config(self) -> PPORunConfig:
        """Resolved."""
        return self.ready.config

    @property
    def metric(self) -> Metric:
        """What hosts are scored by."""
        return self.ready.load.task.metric

    def train(self, on_round: Callable[[RoundReport], None], tell: Callable[[Sequence[str]], None]) -> Path:
        """Play and learn to the end; the policy's file in the run directory, written however the run ended.

        ``tell`` shows lines about a resume.
        """
        ready, config = self.ready, self.config
        with make_crew(ready.sink, ready.load, config) as pool:
            network = _network(config) if ready.past is None else ready.past.restored(saved_network)
            run = make_run(pool, ready.sink, ready.load, config, network)
            what = ready.announcement("ppo", config.rounds, config.envs)
            with open_run(ready.opening(what, ConsoleSink(quiet=True), tell), run) as session:
                session.elsewhere = lambda: pool.cpu_seconds
                pool.shield = session.stop.shielded
                if ready.past is None and config.policy_checkpoint is not None:
                    _begin_from(session, run, config.policy_checkpoint)
                try:
                    run.run(on_round)
                finally:
                    if run.rounds_done:
                        path = _save(session, run, config)
        return path


def make_crew(hub: Hub, load: Workload, config: PPORunConfig) -> WorkerPool:
    """Those who drive the hosts. Raises ``UsageError`` where a Ray that was asked for is not there."""
    if config.workers == 1:
        return WorkerPool.here(lambda emit: build_paid(load, config, emit), hub.emit)
    factory = EnvFactory(replace(config, device=load.device), load.task.data.digest)
    timeout = config.workers_timeout
    if isinstance(config.workers, int):
        return WorkerPool(lambda: ProcessWorker(factory), config.workers, hub.emit, timeout=timeout, tell=warn)
    from esper.simic import workers_ray

    hire = workers_ray.hiring(factory)
    size = workers_ray.connect(config.workers, config.envs, timeout, warn)
    return WorkerPool(hire, size, hub.emit, timeout=timeout, tell=warn)


def make_run(pool: WorkerPool, hub: Hub, load: Workload, config: PPORunConfig, network: GrowthNetwork) -> PPORun:
    """Put MDP, policy and learner together. No episode of a learner looks at the test split."""
    mdp = GrowthMDP(pool, load.task.metric, MDPConfig(load.max_epochs, config.rewards(), config.gamma))
    return PPORun(mdp, ActionSpace(tuple(load.task.sites), load.task.blueprints), network, config.plan(), hub)


def _network(config: PPORunConfig) -> GrowthNetwork:
    if config.policy_checkpoint is None:
        return fresh_network(config.seed, cells=config.cells)
    saved = load_policy(Path(config.policy_checkpoint))
    if saved.nurture:
        raise UsageError(
            f"policy {config.policy_checkpoint}: it leaves gates and pruning to rules, and PPO chooses them, too; "
            "legal: a policy that `esper train ppo` wrote"
        )
    return saved.network


def _save(session: Session, run: PPORun, config: PPORunConfig) -> Path:
    path = session.path / POLICY_FILE
    card = {
        "task": config.task,
        "episode_length": run.environments.mdp.config.max_epochs,
        "reward": config.reward,
        "seed": config.seed,
        "rounds": run.rounds_done,
        "episodes": run.episodes_completed,
        "run": session.directory.run_id,
        "started_from": config.policy_checkpoint,
        "run_macs": run.training_macs,
        "earlier_macs": run.earlier_macs,
    }
    saved = save_policy(path, run.network, card)
    session.say(
        TelemetryEventType.CHECKPOINT_SAVED,
        path=str(path),
        step=run.rounds_done,
        bytes=saved.bytes,
        seconds=saved.seconds,
        reason="policy",
    )
    return path


def _begin_from(session: Session, run: PPORun, path: str) -> None:
    saved = load_policy(Path(path))
    run.earlier_macs = saved.training_macs
    session.say(TelemetryEventType.CHECKPOINT_LOADED, path=path, step=int(saved.card.get("rounds", 0)), exact=True)
