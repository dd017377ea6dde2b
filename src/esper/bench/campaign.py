"""A whole bench: tune every arm with equal trials, then run each once on every seed; in processes, resumable.

    tuning and the search for a schedule -> arms that wait for nothing -> arms that need the grown runs' MACs

A stage's trials are independent of each other. Whatever is in the store already is not run again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Final

import torch

from esper.bench.arms import Arm, chosen
from esper.bench.directions import RANKING, check
from esper.bench.settings import GRIDS, BenchConfig, TrialSetting
from esper.bench.store import Store
from esper.bench.trial import Trial, TrialOutcome, Work, run_search, run_trial, task_of
from esper.leyline import EsperError, UsageError
from esper.tolaria.rng import derive

SEARCH: Final = "search"
"""Key of what the search for a schedule found."""

SPLITS: Final = 2**31
"""As many as there are seeds of NumPy's generator."""

Jobs = Mapping[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
"""Key -> what it is, in plain words, and the call that does it."""

Told = Callable[[int, int, str], None]
"""``(done, of, what)``, called whenever something is finished."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an arm's setting was chosen: mean validation metric of each trial (``None`` where a run failed)."""

    setting: TrialSetting
    tried: tuple[tuple[TrialSetting, float | None], ...]
    macs: int


@dataclass(slots=True)
class Evidence:
    """What the bench found out, per arm in the order of the arms."""

    arms: tuple[Arm, ...]
    tuning: dict[str, Tuning] = field(default_factory=dict)
    finals: dict[str, list[TrialOutcome]] = field(default_factory=dict)
    """One outcome a seed, in the order of the seeds."""
    schedule: dict[str, Any] | None = None
    """What the search for a schedule found and took."""


def work_of(config: BenchConfig) -> Work:
    """What all trials share; loads the task."""
    options = tuple(sorted(config.options.items()))
    epochs = config.epochs or task_of(Work(config.task, options)).budget.max_epochs
    return Work(config.task, options, epochs, config.device)


class Campaign:
    """Plans trials, has them run, and reads the store."""

    def __init__(self, config: BenchConfig, work: Work, store: Store, told: Told | None = None) -> None:
        self.config, self.work, self.store = config, work, store
        self.arms = chosen(config.arms, config.grown)
        if any(arm.policy == "policy" for arm in self.arms) and config.policy is None:
            raise UsageError("arm 'policy' needs --policy-checkpoint FILE")
        task = task_of(self._work("final", 0))
        if any(arm.policy == RANKING for arm in self.arms):
            check(task)
        self.evidence = Evidence(self.arms)
        self._told = told or (lambda done, of, what: None)
        self._pool: ProcessPoolExecutor | None = None

    def run(self) -> Evidence:
        """Run what is missing; returns everything."""
        ready = [arm for arm in self.arms if not arm.dependent and arm.policy != "schedule"]
        scheduled = [arm for arm in self.arms if arm.policy == "schedule"]
        dependent = [arm for arm in self.arms if arm.dependent]
        searching = self._search() if scheduled else {}
        try:
            self._tune(ready, searching)
            if scheduled:
                self.evidence.schedule = self.store.plain(SEARCH)
            self._tune([*scheduled, *dependent])
            self._play([*ready, *scheduled])
            self._play(dependent)
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
        return self.evidence

    # --- what there is to do --------------------------------------------------------------------------------------

    def seeds(self, stage: str) -> list[int]:
        """Seeds of a stage; those of tuning, of the search and of the judgement share none."""
        count = self.config.seeds if stage == "final" else self.config.tuning_seeds
        return [derive(self.config.seed, f"bench-{stage}", number) for number in range(count)]

    def settings(self, arm: Arm) -> tuple[TrialSetting, ...]:
        """What the arm may try."""
        return GRIDS[arm.family][: self.config.trials]

    def trial(self, arm: Arm, stage: str, number: int, setting: TrialSetting) -> Trial:
        """The trial of ``arm`` on seed ``number`` of a stage. The grown run that a dependent arm needs is there."""
        topology: Mapping[str, str] | str | None = None
        macs = None
        if arm.dependent:
            grown = self._grown(stage, number)
            topology = dict(grown.seeds) if arm.topology == "grown" else None
            macs = grown.macs if arm.equal else None
        if arm.topology in ("full", "middle", "searched"):
            topology = arm.topology
        schedule = self.evidence.schedule if arm.policy == "schedule" else None
        return Trial(
            work=self._work(stage, number),
            arm=arm.name,
            stage=stage,
            seed=self.seeds(stage)[number],
            setting=setting,
            policy=str(self.config.policy) if arm.policy == "policy" else arm.policy,
            entries=tuple(schedule["entries"]) if schedule is not None else (),
            topology=topology,
            macs=macs,
        )

    def _work(self, stage: str, number: int) -> Work:
        if not self.config.resplit:
            return self.work
        split = derive(self.config.seed, f"bench-split-{stage}", number) % SPLITS
        return replace(self.work, options=tuple(sorted({**dict(self.work.options), "split": split}.items())))

    def _grown(self, stage: str, number: int) -> TrialOutcome:
        arm = next(arm for arm in self.arms if arm.name == self.config.grown)
        outcome = self.store.outcome(self.trial(arm, stage, number, self.evidence.tuning[arm.name].setting))
        if outcome.failed is not None:
            where = f"arm {arm.name} failed on {stage} seed {number}"
            raise EsperError(f"{where}, and others are held to its compute: {outcome.failed}")
        return outcome

    # --- stages ---------------------------------------------------------------------------------------------------

    def _search(self) -> Jobs:
        if SEARCH in self.store:
            return {}
        search = partial(run_search, self.work, derive(self.config.seed, "bench-search"), self.config.tuning_seeds)
        return {SEARCH: ({"arm": "schedule", "stage": "search"}, search)}

    def _tune(self, arms: Sequence[Arm], more: Jobs | None = None) -> None:
        count = self.config.tuning_seeds
        trials = {
            (arm.name, setting): [self.trial(arm, "tune", number, setting) for number in range(count)]
            for arm in arms
            for setting in self.settings(arm)
        }
        self._run((trial for each in trials.values() for trial in each), more)
        sign = 1.0 if task_of(self.work).metric.higher_is_better else -1.0
        for arm in arms:
            tried, macs = [], 0
            for setting in self.settings(arm):
                outcomes = [self.store.outcome(trial) for trial in trials[arm.name, setting]]
                macs += sum(outcome.macs for outcome in outcomes)
                tried.append((setting, _mean([outcome.validation for outcome in outcomes])))
            best = max(tried, key=lambda pair: -math.inf if pair[1] is None else sign * pair[1])
            if best[1] is None:
                raise EsperError(f"arm {arm.name}: every setting that was tried failed on some tuning seed")
            self.evidence.tuning[arm.name] = Tuning(best[0], tuple(tried), macs)

    def _play(self, arms: Sequence[Arm]) -> None:
        trials = {
            arm.name: [
                self.trial(arm, "final", number, self.evidence.tuning[arm.name].setting)
                for number in range(self.config.seeds)
            ]
            for arm in arms
        }
        self._run(trial for each in trials.values() for trial in each)
        for name, each in trials.items():
            self.evidence.finals[name] = [self.store.outcome(trial) for trial in each]

    # --- processes ------------------------------------------------------------------------------------------------

    def _run(self, trials: Iterable[Trial], more: Jobs | None = None) -> None:
        """Run what is not in the store yet, and store each result as it comes in."""
        missing = {trial.key(): trial for trial in trials if trial.key() not in self.store}
        jobs: Jobs = {key: (asdict(each), partial(_outcome, each)) for key, each in missing.items()}
        jobs = {**(more or {}), **jobs}
        for done, (key, result) in enumerate(self._results(jobs), 1):
            what, _ = jobs[key]
            self.store.put(key, what, result)
            self._told(done, len(jobs), f"{what['arm']}, {what['stage']}")

    def _results(self, jobs: Jobs) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.config.workers == 1:
            for key, (_, call) in jobs.items():
                yield key, call()
            return
        futures = {self._processes().submit(call): key for key, (_, call) in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise EsperError(
                "a worker process was lost (killed, or out of memory); the same command goes on"
            ) from error

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            workers = self.config.workers or os.cpu_count() or 1
            # a forked child would share locks with threads of this process
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, _begin_worker)
        return self._pool


def _begin_worker() -> None:
    # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _outcome(trial: Trial) -> dict[str, Any]:
    return asdict(run_trial(trial))


def _mean(values: Sequence[float | None]) -> float | None:
    """``None`` when one is missing or not finite: an arm must not win by failing."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known and len(known) == len(values) else None
