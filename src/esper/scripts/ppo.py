"""``esper train ppo``: learn a policy that decides what to grow, and save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from esper.leyline import ActionSpace, Metric, TelemetryEventType, UsageError
from esper.nissa.console import ConsoleSink
from esper.run.assembly import FORGIVING, Workload, build_executor, workload
from esper.run.config import Resolved, resolve
from esper.run.resume import About, Asked, Keeper, Outbox, Past, find, subject_of
from esper.run.session import Announcement, Session, SessionConfig, open_session
from esper.simic.ppo_config import PRESETS, PPORunConfig
from esper.simic.scribe import Hub
from esper.simic.vectorized import PPORun, RoundReport, fresh_network, saved_network
from esper.simic.workers import Crew, Recipe
from esper.simic.workers_process import ProcessWorker
from esper.simic.world import World, WorldConfig
from esper.tamiyo.network import GrowthNetwork
from esper.tamiyo.policies.learned import load_policy, save_policy
from esper.tasks import get_task
from esper.tolaria.rng import seed_process

POLICY_FILE = "policy.safetensors"


def run_ppo(flags: Mapping[str, Any], file: Mapping[str, Any], asked: Asked | None = None) -> int:
    """Resolve the configuration, learn, save; or go on with the run that was ``asked`` for. Returns the exit status."""
    past = None if asked is None else find(asked, "ppo", PPORunConfig, {**file, **flags})
    task = str(flags.get("task", file.get("task", PPORunConfig().task)))
    resolved = resolve(PPORunConfig, flags, file, PRESETS.get(task)) if past is None else past.resolved
    config = resolved.config
    torch.set_num_threads(config.threads)
    seed_process(config.seed)
    load = workload(get_task(config.task), config.base())
    about = About("ppo", {name: setting.value for name, setting in resolved.settings.items()}, subject_of(load))
    if past is not None:
        past.require(about.subject)
    outbox = Outbox()
    with make_crew(outbox, load, config) as crew:
        run = make_run(crew, outbox, load, config, _network(config) if past is None else past.restored(saved_network))
        if past is not None:
            past.restored(run.load)
        with open_session(_session_config(resolved, load, past)) as session:
            outbox.open(session)
            session.elsewhere = lambda: crew.cpu_seconds
            path = _train(session, run, about, load, config, past)
    console = Console(highlight=False)
    console.print(Text.assemble(("policy ", "dim"), str(path)), soft_wrap=True)
    console.print(Text.assemble(("run    ", "dim"), str(session.path)), soft_wrap=True)
    return 0


def _train(
    session: Session, run: PPORun, about: About, load: Workload, config: PPORunConfig, past: Past[PPORunConfig] | None
) -> Path:
    """Play and learn to the end, saying so; the policy's file."""
    console = Console(highlight=False)
    session.hub.add_sink(ConsoleSink(quiet=True), name="console")
    session.announce("ppo", _announcement(load, config))
    if past is not None:
        past.say(session)
        if not config.quiet:
            console.print(*past.lines(), sep="\n", soft_wrap=True)
        past.restore_chance()
    elif config.policy_checkpoint is not None:
        _begin_from(session, run, config.policy_checkpoint)
    run.on_boundary = Keeper(session, about, run.state, every=config.checkpoint_every).boundary
    try:
        with session.stop.held():
            run.run(None if config.quiet else lambda report: console.print(line(report, config, load.task.metric)))
    finally:
        if run.rounds_done:
            path = _save(session, run, config)
    return path


def make_crew(hub: Hub, load: Workload, config: PPORunConfig) -> Crew:
    """Those who drive the hosts. Raises ``UsageError`` where a Ray that was asked for is not there."""
    base = config.base()
    if config.workers == 1:
        return Crew.here(lambda emit: build_executor(load, base, emit, governor=FORGIVING, test=False), hub.emit)
    recipe = Recipe(replace(base, device=load.device), load.task.data.digest)
    if isinstance(config.workers, int):
        return Crew(lambda: ProcessWorker(recipe), config.workers, hub.emit)
    from esper.simic import workers_ray

    return Crew(workers_ray.hiring(recipe), workers_ray.connect(config.workers, config.envs), hub.emit)


def make_run(crew: Crew, hub: Hub, load: Workload, config: PPORunConfig, network: GrowthNetwork) -> PPORun:
    """Put world, policy and learner together. No episode of a learner looks at the test split."""
    world = World(crew, load.task.metric, WorldConfig(load.max_epochs, config.rewards(), config.gamma))
    return PPORun(world, ActionSpace(tuple(load.task.sites), load.task.blueprints), network, config.plan(), hub)


def line(report: RoundReport, config: PPORunConfig, metric: Metric) -> Text:
    """One round in one line."""
    update = report.update
    explained = "–" if update.explained_variance is None else f"{update.explained_variance:.2f}"
    return Text(
        f"round {report.number}/{config.rounds}  return {report.mean_return:+.2f}  objective {report.mean_gain:+.2f}  "
        f"{metric.name} {report.mean_metric:.1f} {metric.unit}  kept {report.mean_kept:.1f}  "
        f"entropy {update.entropy:.2f}  KL {update.kl:.3f}  explained {explained}"
    )


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
        "episode_length": run.environments.world.config.max_epochs,
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


def _session_config(resolved: Resolved[PPORunConfig], load: Workload, past: Past[PPORunConfig] | None) -> SessionConfig:
    config = resolved.config
    return SessionConfig(
        kind="ppo",
        run_dir=config.run_dir,
        level=config.telemetry_level,
        lifecycle_only=config.telemetry_lifecycle_only,
        manifest={
            "config": resolved.settings,
            "seeds": {"run": config.seed},
            "data": {"digest": load.task.data.digest, "source": load.task.data.source},
        },
        resume=None if past is None else past.point,
    )


def _announcement(load: Workload, config: PPORunConfig) -> Announcement:
    task = load.task
    return Announcement(
        task=task.name,
        policy="ppo",
        metric=task.metric,
        slots=tuple(task.sites),
        blueprints=task.blueprints,
        episodes=config.rounds,
        envs=config.envs,
        max_epochs=load.max_epochs,
        device=load.device,
        examples={name: len(split) for name, split in task.data.splits().items()},
        host_parameters=sum(p.numel() for p in task.host().parameters()),
    )
