"""The main job: grow a host beside its controls, keep a journal, write report and model, print the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from esper.leyline import HostEngine, TelemetryEventType
from esper.nissa.console import ConsoleSink
from esper.run.assembly import build_executor
from esper.run.config import RunConfig
from esper.run.open import RunRequest, open_run, prepare
from esper.run.play import EpisodePlan, Episodes
from esper.run.resume import ResumeRequest
from esper.run.together import how_to_go_on, led, tell
from esper.scripts.progress import ConsoleProgress
from esper.scripts.summary import print_summary
from esper.tamiyo.policies import make_seeded
from esper.tolaria.missing import RankLost


def run_heuristic(flags: Mapping[str, Any], file: Mapping[str, Any], asked: ResumeRequest | None = None) -> int:
    """Run, or go on with the run that was ``asked`` for; returns the exit status. The policy's best network by
    validation is written to the run directory. Under ``torchrun`` each rank trains on its share of every batch.
    """
    try:
        return _run(flags, file, asked)
    except RankLost as lost:
        if not lost.told:
            raise
        return lost.exit_code


def _run(flags: Mapping[str, Any], file: Mapping[str, Any], asked: ResumeRequest | None) -> int:
    ready = prepare(RunRequest("heuristic", RunConfig, flags, file, asked, together=True))
    config, load = ready.config, ready.load
    ranks, names = load.ranks, dict.fromkeys((config.policy, *config.compare))
    policies = {name: led(make_seeded(name, config.seed), ranks) for name in names}
    console = Console(highlight=False, quiet=ranks.rank != 0)
    plan = EpisodePlan(config.episodes, load.max_epochs, config.seed)
    progress = ConsoleProgress(plan, list(policies), load.task.metric, console, quiet=config.quiet)
    episodes = Episodes(build_executor(load, config, ready.sink.emit, deliver="best"), policies, plan, progress.epoch)
    beside = console if console.is_terminal else None
    lines = ConsoleSink(quiet=config.quiet or console.is_terminal, console=beside) if ranks.rank == 0 else None
    what = ready.announcement(config.policy, config.episodes, len(policies))
    opening = ready.opening(what, lines, progress.say)
    with open_run(opening, episodes) as session, progress:
        episodes.executor.scratch = session.path

        def export(engine: HostEngine) -> None:
            if session.writes:
                made = engine.save(0, session.directory.model)
                session.say(TelemetryEventType.MODEL_EXPORTED, **made.payload())

        try:
            for results, engine in episodes:
                progress.episode(results)
                if config.export and episodes.best_episode == results[0].spec.episode:
                    export(engine)
        except Exception as error:
            if (lost := ranks.lost(error)) is not None:
                tell(lost, how_to_go_on(opening.about, session.directory))
                session.stop.end()  # what is left is written, whatever the launcher sends
            results = episodes.executor.salvage("failed") or []
            if results and config.export and episodes.beats(results[0]):
                export(episodes.executor.engine)
            if lost is not None:
                raise lost from lost.__cause__
            raise
    if session.writes:
        print_summary(session.path, console)
    return 0
