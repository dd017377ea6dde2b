"""The main job: grow a host beside its controls, keep a journal, write report and model, print the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from esper.leyline import Metric, Policy, TelemetryEventType
from esper.nissa.console import ConsoleSink
from esper.scripts.progress import Progress
from esper.scripts.summary import print_summary
from esper.simic.assembly import Workload, build_executor, workload
from esper.simic.config import Resolved, RunConfig, resolve
from esper.simic.session import Announcement, Session, SessionConfig, open_session
from esper.simic.training import Plan, run_episodes
from esper.tamiyo.policies import make_policy
from esper.tasks import get_task
from esper.tolaria.executor import EpisodeResult


def run_heuristic(flags: Mapping[str, Any], file: Mapping[str, Any]) -> int:
    """Resolve the configuration and run; returns the exit status."""
    resolved = resolve(RunConfig, flags, file)
    config = resolved.config
    torch.set_num_threads(config.threads)
    load = workload(get_task(config.task), config)
    policies = make_arms(config)
    console = Console(highlight=False)
    plan = Plan(config.episodes, load.max_epochs, config.seed)
    with (
        open_session(session_config(resolved, load)) as session,
        Progress(plan, list(policies), load.task.metric, console, quiet=config.quiet) as progress,
    ):
        session.hub.add_sink(ConsoleSink(quiet=config.quiet or console.is_terminal), name="console")
        session.announce("heuristic", announcement(load, config, policies))
        run_arms(session, load, config, policies, plan, progress)
    print_summary(session.path, console)
    return 0


def make_arms(config: RunConfig) -> dict[str, Policy]:
    """The policy and its controls, each once, the policy first."""
    names = dict.fromkeys((config.policy, *config.compare))
    return {name: make_policy(name, **({"seed": config.seed} if name == "random" else {})) for name in names}


def session_config(resolved: Resolved[RunConfig], load: Workload) -> SessionConfig:
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


def run_arms(
    session: Session,
    load: Workload,
    config: RunConfig,
    policies: Mapping[str, Policy],
    plan: Plan,
    progress: Progress,
) -> None:
    """Run all episodes of all arms; the policy's best network by validation is written to the run directory."""
    executor = build_executor(load, config, session.emit)
    best: EpisodeResult | None = None
    for results, engine in run_episodes(executor, policies, plan, progress.epoch):
        progress.episode(results)
        if config.export and (best is None or _better(results[0], best, load.task.metric)):
            best = results[0]
            exported = engine.save(0, session.directory.model)
            session.say(TelemetryEventType.MODEL_EXPORTED, **{**asdict(exported), "formats": list(exported.formats)})


def _better(new: EpisodeResult, old: EpisodeResult, metric: Metric) -> bool:
    sign = 1.0 if metric.higher_is_better else -1.0
    return sign * new.validation_metric > sign * old.validation_metric
