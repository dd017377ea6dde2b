"""Where the CPU time of a PPO run goes, what environments cost side by side, and what workers gain.

    uv run python benchmarks/shares.py [--task digits] [--envs 8] [--rounds 6] [--workers 2] [--only shares]

*Shares* are of the CPU time of one run with its journal at level normal, once the static controls of its hosts have
been played, split without overlap: ``hosts`` (training, evaluation, gates, what resets them), ``policy`` (features,
masks, inference, draws, rewards), ``update`` (PPO), ``telemetry`` (building events, hub, journal). *Environments* is
the CPU time of epochs of all rows in one world over that of one executor for each row, the same seeds and actions, in
turn; medians of the pairs. *Workers* is the wall time of the rounds of a run in this process over that of the same
rounds with worker processes, in turn: it means something on an idle machine only. Beside it, what is left when CPU time
alone counts: that of this process over the learner's plus, for each step, that of the worker which took longest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, Op, TelemetryEvent
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from esper.run.assembly import FORGIVING, Workload, build_executor, workload
from esper.simic.event_writer import RolloutEventWriter
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.ppo_config import PRESETS, PPORunConfig
from esper.simic.training import make_crew, make_run
from esper.simic.vectorized import PPORun, fresh_network
from esper.simic.workers import EnvShard, WorkerPool
from esper.tasks import get_task
from esper.tolaria.event_writer import EpisodeEventWriter
from esper.tolaria.executor import Executor

TARGETS = {"policy and update": 0.10, "telemetry": 0.01}
PAIRS = 7


class Meter:
    """CPU seconds by label; what runs within another labelled call counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._labels: list[str] = []
        self._since = 0.0

    @contextmanager
    def within(self, label: str) -> Iterator[None]:
        """Time until the way out belongs to ``label``."""
        self._settle()
        self._labels.append(label)
        try:
            yield
        finally:
            self._settle()
            self._labels.pop()

    def label(self, owner: Any, name: str, label: str) -> None:
        """Every call of ``owner.name`` from now on belongs to ``label``."""
        call = getattr(owner, name)

        @wraps(call)
        def metered(*args: Any, **keywords: Any) -> Any:
            with self.within(label):
                return call(*args, **keywords)

        setattr(owner, name, metered)

    def _settle(self) -> None:
        now = time.process_time()
        if self._labels:
            self.seconds[self._labels[-1]] += now - self._since
        self._since = now


class Silent:
    """A hub that nobody listens to."""

    def emit(self, event: TelemetryEvent) -> None:
        """Forget it."""


def configured(arguments: argparse.Namespace, workers: int = 1) -> tuple[PPORunConfig, Workload]:
    """The task's preset with the number of environments asked for."""
    preset: dict[str, Any] = {**PRESETS.get(arguments.task, {}), "envs": arguments.envs, "device": "cpu"}
    config = PPORunConfig(task=arguments.task, workers=workers, **preset)
    config = replace(config, rounds=arguments.rounds + _rounds_with_controls(config))
    return config, workload(get_task(config.task), config)


def shares(arguments: argparse.Namespace) -> Iterator[str]:
    """One run, every part of it on the meter."""
    config, load = configured(arguments)
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        hub = NissaHub(level="normal")
        hub.add_sink(JournalWriter(Path(folder), run_id="shares"), name="journal")
        meter.label(hub, "emit", "telemetry")
        for owner, names in (
            (RolloutEventWriter, ("step", "end_round", "step_times")),
            (
                EpisodeEventWriter,
                [
                    name
                    for name in vars(EpisodeEventWriter)
                    if not name.startswith("_") and callable(vars(EpisodeEventWriter)[name])
                ],
            ),
        ):
            for name in names:
                meter.label(owner, name, "telemetry")
        meter.label(EnvShard, "answer", "hosts")
        with make_crew(hub, load, config) as pool:
            run = make_run(pool, hub, load, config, fresh_network(config.seed, cells=config.cells))
            meter.label(run.learner, "update", "update")
            for _ in range(_rounds_with_controls(config)):
                run.play_round()
            meter.seconds.clear()
            with meter.within("policy"):
                for _ in range(arguments.rounds):
                    run.play_round()
        hub.close()
    whole = sum(meter.seconds.values())
    played = f"{arguments.rounds} rounds of {config.envs} environments, {config.task}"
    yield f"shares of {whole:.1f} s of CPU time, {played}:"
    for label in ("hosts", "policy", "update", "telemetry"):
        yield f"  {label:<20} {meter.seconds[label] / whole:7.2%}"
    found = {
        "policy and update": (meter.seconds["policy"] + meter.seconds["update"]) / whole,
        "telemetry": meter.seconds["telemetry"] / whole,
    }
    for label, share in found.items():
        yield f"  {label:<20} {share:7.2%}, target at most {TARGETS[label]:.0%}"


def environments(arguments: argparse.Namespace) -> Iterator[str]:
    """A world of N rows against N executors of one row."""
    config, load = configured(arguments)
    base, seeds, length = config, range(100, 100 + arguments.envs), 3
    slot = next(iter(load.task.sites))
    grow = Decision(FactoredAction(Op.GERMINATE, slot, load.task.blueprints[0], Blend.LINEAR, 1.0, 1), "")
    script = [grow] + [Decision(WAIT, "")] * (length - 1)

    def make(emit: Callable[[TelemetryEvent], None]) -> Executor:
        return build_executor(load, base, emit, governor=FORGIVING, test=False)

    def nobody(event: TelemetryEvent) -> None:
        pass

    together = GrowthMDP(WorkerPool.here(make, nobody), load.task.metric, MDPConfig(length))
    singles = [make(nobody) for _ in seeds]

    def side_by_side() -> None:
        together.begin(list(seeds))
        for decision in script:
            together.step([decision] * len(seeds))

    def one_by_one() -> None:
        for env_id, (executor, seed) in enumerate(zip(singles, seeds, strict=True)):
            executor.reset([EnvSpec(env_id, 0, seed, length)])
            executor.engine.evaluate([0], [({},)])
            for decision in script:
                executor.step([decision])
            executor.finish()

    ratios = [_cpu(side_by_side) / _cpu(one_by_one) for _ in range(PAIRS + 1)][1:]
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    yield (
        f"environments: {statistics.median(ratios):.3f} x the sum of single runs ({spread}, {PAIRS} pairs), "
        "target at most 1.05"
    )


def workers(arguments: argparse.Namespace) -> Iterator[str]:
    """The same rounds with one worker and with several, in turn."""
    config, load = configured(arguments)
    spread, _ = configured(arguments, arguments.workers)
    with make_crew(Silent(), load, config) as alone, make_crew(Silent(), load, spread) as many:
        runs = [
            make_run(pool, Silent(), load, config, fresh_network(config.seed, cells=config.cells))
            for pool in (alone, many)
        ]
        for run in runs:
            for _ in range(_rounds_with_controls(config)):
                run.play_round()
        path = CriticalPath(many)
        times, alone_cpu, learner_cpu = [], 0.0, 0.0
        for _ in range(arguments.rounds):
            (one, one_cpu), (several, several_cpu) = (_timed(run) for run in runs)
            times.append((one, several))
            alone_cpu, learner_cpu = alone_cpu + one_cpu, learner_cpu + several_cpu
        same = all(
            torch.equal(a, b) for a, b in zip(runs[0].network.parameters(), runs[1].network.parameters(), strict=True)
        )
    ratios = [one / several for one, several in times]
    yield (
        f"workers: {arguments.workers} are {statistics.median(ratios):.2f} x as fast as 1 "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs of rounds), target at least 1.7 on two cores; "
        f"{alone_cpu / (learner_cpu + path.seconds):.2f} x by CPU time alone; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
        f"policies {'equal bit for bit' if same else 'DIFFER'}"
    )


def _rounds_with_controls(config: PPORunConfig) -> int:
    """After so many every host is known, and processes have long started."""
    return -(-config.hosts // config.envs)


def _cpu(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _timed(run: PPORun) -> tuple[float, float]:
    """Wall and CPU seconds of a round."""
    began, cpu = time.perf_counter(), time.process_time()
    run.play_round()
    return time.perf_counter() - began, time.process_time() - cpu


class CriticalPath:
    """CPU seconds of the slowest worker of each request, summed."""

    def __init__(self, pool: WorkerPool) -> None:
        self.seconds = 0.0
        ask = pool._ask

        def watched(request: Any) -> Any:
            before = list(pool._cpu)
            answers = ask(request)
            self.seconds += max(now - then for now, then in zip(pool._cpu, before, strict=True))
            return answers

        pool._ask = watched  # type: ignore[method-assign]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=("shares", "environments", "workers"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # the meter stays on what it was put on; it comes last
    for measure in (environments, workers, shares):
        if arguments.only in (None, measure.__name__):
            for text in measure(arguments):
                print(text, flush=True)


if __name__ == "__main__":
    main()
