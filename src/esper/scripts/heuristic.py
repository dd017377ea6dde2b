"""The main job: grow a host beside its controls, keep a journal, write report and model, print the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from esper.leyline import Policy, TelemetryEventType
from esper.nissa.console import ConsoleSink
from esper.scripts.progress import ConsoleProgress
from esper.scripts.summary import print_summary
from esper.simic.assembly import Workload, build_executor, workload
from esper.simic.config import Resolved, RunConfig, resolve
from esper.simic.resume import About, Asked, Keeper, Outbox, Past, find, subject_of
from esper.simic.session import Announcement, Session, SessionConfig, open_session
from esper.simic.training import Episodes, Plan
from esper.tamiyo.policies import make_seeded
from esper.tasks import get_task
from esper.tolaria.rng import seed_process


def run_heuristic(flags: Mapping[str, Any], file: Mapping[str, Any], asked: Asked | None = None) -> int:
    """Resolve the configuration and run, or go on with the run that was ``asked`` for; returns the exit status."""
    past = None if asked is None else find(asked, "heuristic", RunConfig, {**file, **flags})
    resolved = resolve(RunConfig, flags, file) if past is None else past.resolved
    config = resolved.config
    torch.set_num_threads(config.threads)
    seed_process(config.seed)
    load = workload(get_task(config.task), config)
    policies = make_arms(config)
    console = Console(highlight=False)
    plan = Plan(config.episodes, load.max_epochs, config.seed)
    outbox = Outbox()
    progress = ConsoleProgress(plan, list(policies), load.task.metric, console, quiet=config.quiet)
    episodes = Episodes(build_executor(load, config, outbox.emit), policies, plan, progress.epoch)
    about = about_run(load, resolved, episodes)
    if past is not None:
        past.require(about.subject)
        past.restored(episodes.load)
    with open_session(session_config(resolved, load, past)) as session, progress:
        outbox.open(session)
        session.hub.add_sink(ConsoleSink(quiet=config.quiet or console.is_terminal), name="console")
        session.announce("heuristic", announcement(load, config, policies))
        if past is not None:
            past.say(session)
            progress.say(past.lines())
            past.restore_chance()
        keeper = Keeper(session, about, episodes.state, every=config.checkpoint_every, least=episodes.least)
        episodes.on_boundary = keeper.boundary
        with session.stop.held():
            run_arms(session, config, episodes, progress)
    print_summary(session.path, console)
    return 0


def about_run(load: Workload, resolved: Resolved[RunConfig], episodes: Episodes) -> About:
    """What a checkpoint says about this run."""
    values = {name: setting.value for name, setting in resolved.settings.items()}
    remarks = tuple(f"policy of arm {arm}: it cannot be saved, and begins anew" for arm in episodes.forgetful)
    return About("heuristic", values, subject_of(load), remarks)


def make_arms(config: RunConfig) -> dict[str, Policy]:
    """The policy and its controls, each once, the policy first."""
    names = dict.fromkeys((config.policy, *config.compare))
    return {name: make_seeded(name, config.seed) for name in names}


def session_config(resolved: Resolved[RunConfig], load: Workload, past: Past[RunConfig] | None) -> SessionConfig:
    """What the session writes about itself."""
    config = resolved.config
    return SessionConfig(
        kind="heuristic",
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


def announcement(load: Workload, config: RunConfig, policies: Mapping[str, Policy]) -> Announcement:
    """What is about to run."""
    task = load.task
    return Announcement(
        task=task.name,
        policy=config.policy,
        metric=task.metric,
        slots=tuple(task.sites),
        blueprints=task.blueprints,
        episodes=config.episodes,
        envs=len(policies),
        max_epochs=load.max_epochs,
        device=load.device,
        examples={name: len(split) for name, split in task.data.splits().items()},
        host_parameters=sum(p.numel() for p in task.host().parameters()),
    )


def run_arms(session: Session, config: RunConfig, episodes: Episodes, progress: ConsoleProgress) -> None:
    """Run all episodes of all arms; the policy's best network by validation is written to the run directory."""
    for results, engine in episodes:
        progress.episode(results)
        if config.export and episodes.best_episode == results[0].spec.episode:
            exported = engine.save(0, session.directory.model)
            session.say(TelemetryEventType.MODEL_EXPORTED, **{**asdict(exported), "formats": list(exported.formats)})
