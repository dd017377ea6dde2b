"""One trial: one arm on one seed under one setting, from start to end, through the executor that every run uses."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from esper.bench.arms import HALVED, RIVALS, SEARCHED
from esper.bench.directions import MOMENTS, RANKING, grow_rank
from esper.bench.plant import Planted, by_gradient, copies, largest, middle, plant, teach, third
from esper.bench.rivals import RivalTask, adapting
from esper.bench.settings import TrialSetting
from esper.bench.topologies import SEARCHES, Candidate, TopologySearch
from esper.leyline import (
    Blend,
    EnvSpec,
    EsperError,
    FactoredAction,
    GateThresholds,
    Op,
    Policy,
    SeedStage,
    TelemetryEvent,
    TelemetryEventType,
)
from esper.run.assembly import Workload, build_executor, trainer_config, workload
from esper.run.config import RunConfig
from esper.run.play import Episode
from esper.run.search import find_schedule
from esper.tamiyo.policies import (
    FrugalPolicy,
    HeuristicConfig,
    HeuristicPolicy,
    NurturedPolicy,
    SchedulePolicy,
    make_policy,
    make_seeded,
)
from esper.tasks import get_task
from esper.tasks.base import TaskSpec
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.executor import EpisodeResult, Executor
from esper.tolaria.rng import derive

CURVE_POINTS: Final = 100
"""Most points of a course that are kept."""
NEVER: Final = 10**9
INSERTING: Final = ("net2net", "gradmax", "stacked", "joint")
"""Policies that grow once, at a fixed time, without evidence."""
AT_ONCE: Final = {"promised": 0, "one-step": 1}
"""Policies that let seeds be born in all slots at once -> after so many epochs; then frugal's rules decide."""


@dataclass(frozen=True, slots=True)
class Work:
    """What all trials of a bench share."""

    task: str
    options: tuple[tuple[str, Any], ...] = ()
    epochs: int = 30
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Trial:
    """Everything that a trial's outcome depends on."""

    work: Work
    arm: str
    stage: str
    """``tune`` (validation decides, the test split is not looked at) or ``final``."""
    seed: int
    setting: TrialSetting
    policy: str = "static"
    """``static``, one of :data:`INSERTING` or :data:`AT_ONCE`, ``blind``, ``grafted``, ``copied``, ``schedule``, a
    registered name, or a policy's file."""
    entries: tuple[Mapping[str, Any], ...] = ()
    """Of a schedule."""
    topology: Mapping[str, str] | str | None = None
    """slot -> blueprint, or ``full`` or ``middle``, a seed of that size in every slot: what is there from the start; or
    ``searched``."""
    macs: int | None = None
    """Train until at least as many are spent, whatever the number of epochs."""

    def key(self) -> str:
        """16 hexadecimal digits that name the trial."""
        plain = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """How a trial ended. A trial that failed says why and has no metric."""

    failed: str | None = None
    validation: float | None = None
    validation_loss: float | None = None
    test: float | None = None
    epochs: int = 0
    macs: int = 0
    """Everything: training, probes, validation, counterfactuals, discarded seeds."""
    inference_macs: int = 0
    parameters: int = 0
    trained: int = 0
    """Parameters that learn, of the network that is delivered."""
    seeds: Mapping[str, str] = field(default_factory=dict)
    """slot -> blueprint of what is in the network in the end."""
    spent: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of processor time, validation and test too; for arms that grow also what was measured before the first batch."""
    candidates: int = 0
    """Topologies that a search trained."""
    curve: Sequence[tuple[int, float]] = ()
    """MACs spent and validation metric after an epoch."""
    births: Sequence[int] = ()
    """MACs spent when a seed was born, one entry a seed, of arms that grow."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> TrialOutcome:
        """Undo of ``asdict``."""
        curve = tuple((macs, metric) for macs, metric in plain["curve"])
        return cls(**{**plain, "curve": curve, "births": tuple(plain.get("births", ()))})


def task_of(work: Work) -> TaskSpec:
    """The task with its data; loaded once a process, whatever the epochs and the device."""
    return _task(work.task, work.options)


@lru_cache(maxsize=2)
def _task(name: str, options: tuple[tuple[str, Any], ...]) -> TaskSpec:
    return get_task(name, **dict(options))


def run_trial(trial: Trial) -> TrialOutcome:
    """Run it. A run that the governor gives up is an outcome, not an error."""
    began = time.process_time()
    if trial.topology == SEARCHED:
        return replace(_Search(trial).run(), cpu_seconds=time.process_time() - began)
    player = _TrialRun(trial)
    # who does not grow needs no slots, which are measured when they are made
    if not player.grows:
        began = time.process_time()
    try:
        outcome = player.play(trial.work.epochs if trial.macs is None else player.affordable(trial.macs))
    except EsperError as error:
        return TrialOutcome(failed=str(error))
    return replace(outcome, cpu_seconds=time.process_time() - began)


class _Search:
    """The arm of whoever looks for a topology: trains one after the other until the compute is spent.

    The network with the best validation of all is delivered, and it alone is looked at on the test split.
    """

    def __init__(self, trial: Trial) -> None:
        assert trial.macs is not None
        self.trial, self.most = trial, trial.macs
        self.epochs = max(1, round(trial.setting.at * trial.work.epochs))
        metric = task_of(trial.work).metric
        self.sign = 1.0 if metric.higher_is_better else -1.0
        offered = _TrialRun(replace(trial, topology={}, macs=None)).offered()
        how = SEARCHES[trial.arm]
        seed = derive(trial.seed, trial.arm)
        self.search = TopologySearch(how, offered, seed, self.epochs, metric.higher_is_better)
        self.spent = self.count = self.trained = 0
        self.purposes: Counter[str] = Counter()
        """MACs of all candidates that are done, by purpose."""
        self.seconds = 0.0
        """Of all candidates, their own time."""
        self.best: tuple[float, EpisodeResult, _TrialRun] | None = None
        self.curve: list[tuple[int, float]] = []

    def run(self) -> TrialOutcome:
        """The whole search."""
        while self.spent < self.most and (candidate := self.search.ask()) is not None:
            self._try(candidate)
        if self.best is None:
            return TrialOutcome(failed="no topology that was tried could be trained", macs=self.spent)
        _, result, run = self.best
        self.purposes.subtract(run.purposes)
        test = run.tested() if self.trial.stage == "final" else None
        self.purposes.update(run.purposes)
        return replace(
            run.outcome(result, self.trained, self.curve),
            test=test,
            macs=self.purposes["total_macs"],
            spent=dict(self.purposes),
            seconds=self.seconds,
            candidates=self.count,
        )

    def _try(self, candidate: Candidate) -> None:
        """Train one until it is done, falls behind, or nothing is left to spend."""
        run = _TrialRun(replace(self.trial, stage="tune", topology=candidate.topology, macs=None))
        before = self.spent
        self.count += 1

        def told(epoch: int, metric: float) -> bool:
            self.trained, self.spent = self.trained + 1, before + run.spent
            known = [metric] if self.best is None else [metric, self.best[1].validation_metric]
            self.curve.append((self.spent, max(known, key=self._worth)))
            return self.search.report(candidate, epoch, metric) or self.spent >= self.most

        result, began = None, time.perf_counter()
        try:
            result = run.part(self.epochs, told)
        except EsperError:
            pass  # it was trained for nothing, and what that took counts
        self.spent = before + run.spent
        self.purposes.update(run.purposes)
        self.seconds += time.perf_counter() - began if result is None else result.seconds
        if result is None or math.isnan(result.validation_metric):
            self.search.tell(candidate, None)
        else:
            self.search.tell(candidate, result.validation_metric)
        if result is not None:
            worth = self._worth(result.validation_metric)
            if self.best is None or worth > self.best[0]:
                self.best = worth, result, run

    def _worth(self, metric: float) -> float:
        """More is better; what is no number is worst."""
        return -math.inf if math.isnan(metric) else self.sign * metric


def run_search(work: Work, seed: int, count: int) -> dict[str, Any]:
    """Find the best fixed schedule on ``count`` seeds of its own: its entries, what it reached and what it took."""
    task = task_of(work)
    slots = len(task.sites)
    config = RunConfig(task=work.task, max_seeds=slots, max_epochs=work.epochs, device=work.device, seed=seed)
    found = find_schedule(config, workload(task, config), count)
    entries = [entry.to_dict() for entry in found.entries]
    return {"entries": entries, "metric": found.metric, "schedules": found.schedules, "macs": found.macs}


class _TrialRun:
    """A trial's executor and policy."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.grows = trial.policy != "static"
        self.thresholds = self._thresholds()
        self.measured = trial.policy not in ("static", "blind", RANKING, *INSERTING)
        self.load, self.executor = self._assembled()
        assert isinstance(self.executor.engine, ModuleEngine)
        self.engine = self.executor.engine
        self.policy = self._policy()

    def _thresholds(self) -> GateThresholds:
        usual = GateThresholds(ask_for_gain=self.trial.policy != "blind")
        return replace(usual, min_training_epochs=1, min_holding_epochs=1) if self.trial.setting.quick else usual

    def _assembled(self) -> tuple[Workload, Executor]:
        trial, setting = self.trial, self.trial.setting
        every = 1 if self.measured else NEVER
        task = task_of(trial.work)
        config = RunConfig(
            task=trial.work.task,
            # growth may fill every slot, as the large network does
            max_seeds=len(task.sites),
            max_epochs=trial.work.epochs,
            device=trial.work.device,
            counterfactual_every=every,
            incubation="graft" if trial.policy == "grafted" else None,
            generations=len(MOMENTS) if trial.policy == RANKING else 1,
            param_budget=adapting(task, "lora8") // 2 if trial.arm == HALVED else None,
        )
        load = workload(task, config)
        budget = load.task.budget
        base = trainer_config(load, config)
        if not self.grows and trial.topology is None:
            # nothing grows, so that one slot is as good as many and is measured faster
            load = replace(load, task=replace(load.task, sites=dict(list(task.sites.items())[-1:])))
        if trial.arm in RIVALS:
            rival = RivalTask(task, trial.arm, steps=trial.work.epochs * task.data.train.parts(base.batch_size))
            load = replace(load, task=replace(rival.task, sites=load.task.sites))
            base = rival.trainer(base)
        multiplier = budget.seed_lr_multiplier if setting.seed_lr is None else setting.seed_lr
        schedule = replace(base.schedule, seed_multiplier=multiplier, host_restart=setting.restart)
        trainer = replace(base, lr=base.lr * setting.lr, schedule=schedule, thresholds=self.thresholds)
        final = trial.stage == "final"
        executor = build_executor(load, config, self._told, test=final, trainer=trainer, deliver="best")
        return load, executor

    def _policy(self) -> Policy:
        trial = self.trial
        if trial.policy == "schedule":
            return SchedulePolicy(trial.entries)
        if trial.policy in ("heuristic", "blind"):
            return HeuristicPolicy()
        if trial.policy in ("frugal", "grafted", "copied"):
            return FrugalPolicy()
        if trial.policy in AT_ONCE:
            return FrugalPolicy(HeuristicConfig(first_epoch=NEVER))
        if trial.policy == "nurtured":
            return NurturedPolicy(seed=trial.seed)
        if trial.policy in (RANKING, *INSERTING):
            return make_policy("static")
        return make_seeded(trial.policy, trial.seed)

    def _begin(self, epochs: int) -> None:
        trial = self.trial
        spec = EnvSpec(0, 0, trial.seed, epochs, arm=trial.arm, policy=self.policy.name)
        self.episode = Episode.begin(self.executor, [spec], self.policy)
        if trial.topology is not None:
            wanted = self._wanted(trial.topology)
            self._plant([Planted(slot, wanted[slot], self._draw(slot)) for slot in self._sizes() if slot in wanted])
            self.episode.look()

    def _wanted(self, topology: Mapping[str, str] | str) -> dict[str, str]:
        if not isinstance(topology, str):
            return dict(topology)
        return largest(self._sizes()) if topology == "full" else middle(self._sizes())

    def _sizes(self) -> Mapping[str, Mapping[str, int]]:
        return self.engine.views([0])[0].blueprint_parameters

    def _draw(self, slot: str) -> int:
        return derive(self.trial.seed, "planted", slot)

    def _plant(self, seeds: Sequence[Planted], stage: SeedStage = SeedStage.FOSSILIZED) -> None:
        plant(self.engine.trainer(0), seeds, self.trial.setting.initial, stage)

    def _told(self, event: TelemetryEvent) -> None:
        """What happens in the run."""
        if self.trial.policy == "copied" and event.event_type is TelemetryEventType.SEED_GERMINATED:
            assert event.slot_id is not None
            teach(self.engine.trainer(0).model.slots, event.slot_id)

    def _give_birth(self) -> None:
        """The growth of the arms in which all seeds are born at once."""
        sizes = self._sizes()
        wanted = third(sizes)
        if self.trial.policy == "promised":
            wanted = {each.slot: each.blueprint for each in by_gradient(self.engine.trainer(0), sizes, self.trial.seed)}
        for slot, blueprint in wanted.items():
            action = FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, 1.0, tempo=1)
            (born,) = self.engine.apply([0], [action])
            if not born.success:
                raise EsperError(f"{blueprint} cannot be born in slot {slot}: {born.why_not}")

    def _insert(self) -> None:
        """The growth of the arms that grow at fixed times, without evidence."""
        if self.trial.policy == RANKING:
            grow_rank(self.engine.trainer(0), self.trial.seed)
            return
        sizes = self._sizes()
        if self.trial.policy == "gradmax":
            self._plant(by_gradient(self.engine.trainer(0), sizes, self.trial.seed))
        elif self.trial.policy == "joint":
            wanted = third(sizes)
            self._plant([Planted(slot, name, self._draw(slot)) for slot, name in wanted.items()], SeedStage.HOLDING)
        else:
            wanted = copies(sizes) if self.trial.policy == "stacked" else largest(sizes)
            self._plant([Planted(slot, blueprint, self._draw(slot)) for slot, blueprint in wanted.items()])

    def affordable(self, macs: int) -> int:
        """Epochs that spend at least ``macs`` together with the last look at validation and test."""
        self._begin(1)
        splits, trainer = task_of(self.trial.work).data.splits(), self.engine.trainer(0)
        step, forward = trainer.step_macs(()), trainer.macs.forward
        epoch = (step.forward + step.backward) * len(splits["train"]) + forward * len(splits["validation"])
        last = forward * (len(splits["validation"]) + (len(splits["test"]) if self.trial.stage == "final" else 0))
        return max(1, -(-(macs - last) // epoch))

    @property
    def spent(self) -> int:
        """MACs of all that was done so far."""
        return self.purposes["total_macs"]

    @property
    def purposes(self) -> Mapping[str, int]:
        """The same by purpose, with their sum."""
        return self.engine.costs([0])[0].spent

    def offered(self) -> Mapping[str, Mapping[str, int]]:
        """slot -> blueprint -> parameters, of what can grow."""
        self._begin(1)
        return self._sizes()

    def part(self, epochs: int, told: Callable[[int, float], bool]) -> EpisodeResult:
        """An episode of so many epochs, which ends where ``told(epochs done, metric)`` says so."""
        self._begin(epochs)
        for step in self.episode.epochs(self.policy):
            metric = step.reports[0].view.metric
            if metric is not None and told(self.executor.epoch, metric):
                break
        (result,) = self.episode.finish(self.policy)
        return result

    def tested(self) -> float:
        """The metric of what was delivered on the test split."""
        return float(self.engine.evaluate([0], [[{}]], "test").metric[0, 0])

    def play(self, epochs: int) -> TrialOutcome:
        """The whole episode."""
        self._begin(epochs)
        policy = self.trial.policy
        shares = MOMENTS if policy == RANKING else (self.trial.setting.at,) if policy in INSERTING else ()
        moments = {AT_ONCE[policy]} if policy in AT_ONCE else {round(share * epochs) for share in shares}

        def insert() -> None:
            if self.executor.epoch in moments:
                self._give_birth() if policy in AT_ONCE else self._insert()
                self.episode.look()

        curve: list[tuple[int, float]] = []
        births: dict[str, int] = {}
        begun = 0
        for epoch in self.episode.epochs(self.policy, before=insert):
            view = epoch.reports[0].view
            births |= {each.seed_id: begun for each in view.slots if each.seed_id and each.seed_id not in births}
            begun = self.spent
            if view.metric is not None:
                curve.append((begun, view.metric))
        (result,) = self.episode.finish(self.policy)
        sign = 1.0 if self.load.task.metric.higher_is_better else -1.0
        seen = max((sign * metric for _, metric in curve), default=-math.inf)
        if sign * result.validation_metric < seen:
            raise RuntimeError(
                f"a network of {result.validation_metric} is delivered, and one of {sign * seen} was seen"
            )
        return replace(self.outcome(result, epochs, curve), births=tuple(births.values()) if self.grows else ())

    def outcome(self, result: EpisodeResult, epochs: int, curve: list[tuple[int, float]]) -> TrialOutcome:
        """What it came to."""
        cost = self.engine.costs([0])[0]
        kept = {s.slot_id: s.blueprint or "" for s in result.view.slots if s.live}
        planted = self.trial.topology
        if planted is not None and kept != self._wanted(planted):
            return TrialOutcome(failed="training failed before its first good epoch", macs=result.total_macs)
        stride = -(-len(curve) // CURVE_POINTS)
        learners = (parameter for parameter in self.engine.trainer(0).model.parameters() if parameter.requires_grad)
        return TrialOutcome(
            validation=result.validation_metric,
            validation_loss=result.validation_loss,
            test=result.test_metric,
            epochs=epochs,
            macs=result.total_macs,
            inference_macs=cost.inference_macs,
            parameters=cost.total_parameters,
            trained=sum(parameter.numel() for parameter in learners),
            seeds=kept,
            spent=dict(cost.spent),
            seconds=result.seconds,
            curve=tuple(curve[::-1][::stride][::-1]),
        )
