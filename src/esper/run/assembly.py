"""From a task and a configuration to an executor: the one place where the parts are put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from esper.kasmina.blueprints import ENTRY_POINTS, find
from esper.kasmina.growable import known
from esper.kasmina.state import Incubation
from esper.leyline import Sink, UsageError, plugins_in, unknown
from esper.run.config import CommonConfig
from esper.tasks.base import TaskSpec
from esper.tolaria.diagnostics import DiagnosticsConfig
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor, GovernorConfig
from esper.tolaria.ranks import LONE, Ranks, place
from esper.tolaria.schedules import ScheduleConfig
from esper.tolaria.setup import TrainerConfig, adamw, adamw_options, from_task
from esper.tolaria.stacking import StackedEngine


@dataclass(frozen=True, slots=True)
class Workload:
    """A task as this run uses it: with its slots and blueprints chosen, and how long and where it trains."""

    task: TaskSpec
    max_epochs: int
    device: str
    ranks: Ranks = LONE
    """The processes that train it together."""


def pick_device(name: str) -> str:
    """``auto`` is the first CUDA device if there is one, else the CPU. Raises ``UsageError`` for what is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    legal = ["auto", "cpu", *(f"cuda:{i}" for i in range(count))]
    if name == "cuda" and count:
        return "cuda:0"
    if name == "cpu:0":  # as Accelerate names that of one of several processes
        return "cpu"
    if name not in legal:
        raise UsageError(f"device {name!r} is not here; legal: {', '.join(legal)}")
    return ("cuda:0" if count else "cpu") if name == "auto" else name


def workload(task: TaskSpec, config: CommonConfig) -> Workload:
    """Apply the configuration's choice of slots, blueprints, epochs and device to a task."""
    slots = _chosen("slot", config.slots, tuple(task.sites))
    blueprints = _blueprints(task, config.blueprints)
    chosen = replace(task, sites={slot: task.sites[slot] for slot in slots}, blueprints=blueprints)
    return Workload(chosen, config.episode_epochs or task.budget.max_epochs, pick_device(place(config.device)))


def _blueprints(task: TaskSpec, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Of the task's own in its order, then others: registered ones that the task does not name, and third parties'
    (``module:ATTRIBUTE``, or an entry point's name).
    """
    installed = plugins_in(ENTRY_POINTS, task.blueprints)
    registered = set(known()) - set(task.blueprints)
    foreign = [name for name in wanted or () if ":" in name or name in installed or name in registered]
    for name in foreign:
        if name not in registered:
            find(installed[name].value if name in installed else name)
    own = None if wanted is None else tuple(name for name in wanted if name not in foreign)
    if foreign and not own:
        return tuple(dict.fromkeys(foreign))
    return (*_chosen("blueprint", own, task.blueprints), *dict.fromkeys(foreign))


def _chosen(kind: str, wanted: tuple[str, ...] | None, there: tuple[str, ...]) -> tuple[str, ...]:
    if wanted is None:
        return there
    for name in wanted:
        if name not in there:
            raise unknown(kind, name, there)
    if not wanted:
        raise UsageError(f"no {kind} is chosen; legal: {', '.join(there)}")
    return tuple(name for name in there if name in wanted)


def trainer_config(load: Workload, config: CommonConfig) -> TrainerConfig:
    """How envs train: the task's budget with the configuration's overrides."""
    budget = load.task.budget
    default = TrainerConfig()
    slot = replace(default.slot, generations=config.generations)
    if config.incubation is not None:
        slot = replace(slot, incubation=Incubation(config.incubation))
    multiplier = config.seed_lr_multiplier or budget.seed_lr_multiplier
    return replace(
        default,
        device=load.device,
        lr=config.lr or budget.lr,
        weight_decay=budget.weight_decay if config.weight_decay is None else config.weight_decay,
        optimizer=partial(adamw, **adamw_options(config.optimizer)),
        batch_size=config.batch_size or budget.batch_size,
        schedule=ScheduleConfig(budget.schedule, warmup=budget.warmup, seed_multiplier=multiplier),
        slot=slot,
        precision=config.precision,
    )


FORGIVING = GovernorConfig(max_rollbacks=1_000_000)
"""For environments that a policy learns in: a rollback costs it the epoch, and the run goes on."""


def build_paid(load: Workload, config: CommonConfig, emit: Sink, *, test: bool = False) -> Executor:
    """An executor for a policy that is paid for what its seeds are worth: its run is never given up."""
    return build_executor(load, config, emit, governor=FORGIVING, test=test, all_off=True)


def build_executor(
    load: Workload,
    config: CommonConfig,
    emit: Sink,
    *,
    governor: GovernorConfig | None = None,
    test: bool = True,
    trainer: TrainerConfig | None = None,
    deliver: Literal["best", "last"] = "last",
    all_off: bool = False,
) -> Executor:
    """An executor over a fresh engine for ``load``. Without ``test`` no episode looks at the test split.

    ``trainer`` replaces what :func:`trainer_config` makes of the configuration; ``deliver`` is what each episode leaves
    (see :class:`ExecutorConfig`): the best network where one is wanted, the last where a policy is paid for it;
    with ``all_off`` it is paid by what all seeds together are worth.
    """
    budget = load.task.budget
    trainer = trainer or trainer_config(load, config)
    engine = (StackedEngine if config.stack else ModuleEngine)(
        load.task,
        from_task(load.task, trainer, load.ranks),
        EngineConfig(
            trainer=trainer,
            max_seeds=config.max_seeds or budget.max_seeds,
            parameter_budget=config.param_budget or budget.parameters,
            diagnostics=DiagnosticsConfig.of(config.diagnostics_profile, config.diagnostics_every),
        ),
        emit,
    )
    metric = load.task.metric
    return Executor(
        engine,
        metric,
        emit,
        governor=lambda sink: Governor(metric, governor or GovernorConfig(), sink, device=load.device),
        config=ExecutorConfig(
            counterfactual_every=config.counterfactual_every, test=test, deliver=deliver, all_off=all_off
        ),
    )
