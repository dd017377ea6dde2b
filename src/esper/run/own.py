"""A user's own loss, metric and way to call a model, in the shape that the executor needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina import blueprints
from esper.kasmina.anatomy import host_record
from esper.kasmina.auto import auto_sites, beside_sites
from esper.kasmina.growing import named_sites
from esper.kasmina.hosts import check_host, fill_lazy
from esper.kasmina.probe import Site
from esper.kasmina.sharded import sharding_in
from esper.kasmina.sites import Sites, spread
from esper.kasmina.slot import SlotConfig
from esper.kasmina.trial import ForwardCall, Sample, trial
from esper.leyline import DataError, EnvView, GateThresholds, Metric, Policy, Sink, UsageError, unknown
from esper.run import checks
from esper.run.assembly import pick_device
from esper.run.open import RunOpening
from esper.run.resume import BATCHES, LIBRARY, CheckpointInfo, DeferredSink, find_newest, kind_of
from esper.run.session import Announcement, SessionConfig
from esper.run.together import digest_of, start_alike
from esper.run.wrapped import no_wrapper_called
from esper.tamiyo.policies.auto import AutoPolicy, is_held
from esper.tamiyo.policies.static import StaticPolicy
from esper.tasks.answers import ignored_by
from esper.tasks.base import Batch, CountedBatch
from esper.tasks.loader import LoadedSplit, Unpack, Unpacking
from esper.tasks.losses import OwnLoss, own_loss, shape_of
from esper.tasks.metrics import FirstBatch, Judged, MetricChoice, judged_by
from esper.tasks.output_loss import output_loss, own_output_loss
from esper.tasks.reduction import SplitFigure, by_batch
from esper.tasks.tree import part
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.evaluation import Reading
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor, GovernorConfig
from esper.tolaria.ranks import Ranks, place, present, require_same
from esper.tolaria.schedules import ScheduleConfig
from esper.tolaria.setup import (
    Forward,
    TrainerConfig,
    TrainingSetup,
    adamw,
    call,
    check_precision,
    not_taken,
    trainable,
)

Loader = Iterable[Any]
"""Batches that can be read again each epoch, such as a ``DataLoader``."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train and how much may grow."""

    epochs: int = 20
    """Epochs of the whole run; policies and schedules plan with it."""
    max_seeds: int | Literal["policy"] | None = "policy"
    """Most seeds alive at once; ``"policy"`` is any number for ``auto``, and 2 for all others."""
    generations: int = 1
    """Most seeds that a place keeps, one on top of the other: it opens again when one was kept, so that rank grows by
    evidence. ``max_seeds`` and ``parameters`` count them all."""
    parameters: int | None = None
    """Most parameters of all live seeds together; ``None`` is as many as the host has."""
    blueprints: tuple[str, ...] | None = None
    """What may grow; ``None`` is everything that fits."""
    lr: float = 1e-3
    """Learning rate of the AdamW that is made where no optimizer is given."""
    seed_lr_multiplier: float = 2.0
    """A new seed's peak rate over the host's."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """Learning rates over the epochs: as they are; down to 0 on half a cosine; or as they are and then straight down to
    0 (``"wsd"``), over the last fifth, or after the last birth where that is later."""
    gates: GateThresholds = field(default_factory=GateThresholds)
    """What a seed must show to be blended in and to be kept."""
    evaluation_batch: int | None = None
    """Most examples in one evaluation pass; ``None`` is what a batch of the loader holds. Larger batches are divided,
    which the loss must allow."""
    counterfactual_every: int = 1
    """Epochs between the counterfactual evaluations of what grows; gates wait for them."""
    counterfactual_share: float = 1.0
    """Share of the validation batches that counterfactuals may read, evenly spaced and the same for all of them; they
    read no more than they need. Loss and metric are always of all."""
    snapshot_every: int = 1
    """Epochs between the good states that a rollback goes back to."""
    checkpoint_every: int = field(default=5, compare=False)
    """Epochs between the checkpoints from which ``grow(..., resume=RUN)`` goes on; 0 writes one only when the run is
    asked to stop. In a loop of your own save :meth:`Grower.state_dict`."""
    previous: str | Path | None = field(default=None, compare=False)
    """A run that grew such a model on other data; for :func:`esper.grow`. The model, a fresh one, becomes what that
    delivered, held; its seeds are on where the new validation data do not speak against them, and new ones alone learn.
    Where that run itself went on from an earlier one, apply the earlier first (``esper.apply(model, first)``), whose
    seeds stay as they are and are not judged anew.
    Within :func:`esper.as_before` the old outputs are there again, bit for bit. Such a run folds nothing."""
    fresh: tuple[str, ...] = ()
    """With ``previous``: paths of submodules that are for the new data alone, such as a head for other classes, as many
    or not. They stay as the model given has them, and what learns of them there learns; they share no tensor with the
    rest, and no seed is in or around one. Since such a part has yet to learn what old seeds are worth, all of those are
    on; try by ``policy="static"`` which run is a good one to go on from."""
    fold: bool = True
    """Whether a linear seed beside a module becomes part of its weight on export. Without it each stays a module of its
    own, so that a run on other data can take it over (``previous``)."""

    def __post_init__(self) -> None:
        checks.whole("Budget.epochs", self.epochs)
        if self.max_seeds != "policy":
            checks.whole("Budget.max_seeds", self.max_seeds, optional=True)
        checks.whole("Budget.generations", self.generations)
        checks.whole("Budget.parameters", self.parameters, optional=True)
        checks.whole("Budget.checkpoint_every", self.checkpoint_every, least=0)
        checks.whole("Budget.evaluation_batch", self.evaluation_batch, optional=True)
        checks.whole("Budget.counterfactual_every", self.counterfactual_every)
        checks.whole("Budget.snapshot_every", self.snapshot_every)
        checks.names("Budget.blueprints", self.blueprints)
        checks.positive("Budget.lr", self.lr)
        checks.positive("Budget.seed_lr_multiplier", self.seed_lr_multiplier)
        checks.positive("Budget.counterfactual_share", self.counterfactual_share)
        if self.counterfactual_share > 1.0:
            raise UsageError(f"Budget.counterfactual_share is {self.counterfactual_share}; legal: above 0, at most 1")
        if self.schedule not in ("constant", "cosine", "wsd"):
            raise unknown("Budget.schedule", self.schedule, ("constant", "cosine", "wsd"))
        checks.made("Budget.gates", self.gates, GateThresholds)
        if self.previous is not None and not isinstance(self.previous, str | Path):
            raise UsageError(f"Budget.previous is {self.previous!r}; legal: the directory of a run, or None")
        checks.names("Budget.fresh", self.fresh or None)
        checks.made("Budget.fold", self.fold, bool)
        if self.fresh and self.previous is None:
            raise UsageError(f"Budget.fresh is {self.fresh!r}; it is for Budget.previous: else all of the model is new")


@dataclass(frozen=True, slots=True)
class OwnChoices:
    """How a user's model is trained, judged and grown."""

    loss: OwnLoss | None = None
    """``(output, targets)`` -> the scalar to minimise; ``None`` where the model, called with the whole batch, computes
    it itself, as ``output.loss`` or ``output["loss"]``. Of a split it is the mean over examples of their batches'."""
    metric: MetricChoice = "accuracy"
    """``"accuracy"`` (percent), ``"loss"``, ``"mae"``, or a metric of your own: :class:`Accuracy`, :class:`Scored`, an
    object such as those of torchmetrics, or ``(output, targets) -> [N]``."""
    forward: Forward = call
    """``forward(model, inputs)``: how to call the model. Without it a mapping goes to keywords where they are the
    model's, a tuple or list to as many arguments where the model does not take it as one; else it is the argument."""
    at: Sites = "auto"
    """Where to grow: paths of submodules (or :class:`Site`, which says more), slot -> path, or ``"auto"`` for the
    repeating blocks. ``"+path"`` is beside the module: a seed sees its input and adds to its output; ``"+query"``:
    beside all modules whose path ends so; ``"beside"``: beside every linear layer and convolution that is frozen, which
    ``"auto"`` is, too, for ``policy="auto"`` and a model of which hardly anything learns."""
    budget: Budget = field(default_factory=Budget)
    device: str = "auto"
    """``"auto"`` (the first CUDA device, else the CPU), ``"cpu"`` or ``"cuda:N"``."""
    precision: str | None = None
    """Of passes that are made here: ``"bf16-mixed"``, ``"16-mixed"``, or as the model is."""
    unpack: Unpack | None = None
    """``unpack(batch) -> (inputs, targets)``, where a batch of the loaders is no such pair."""

    def __post_init__(self) -> None:
        checks.made("budget", self.budget, Budget)
        check_precision(self.precision)
        if self.loss is not None:
            checks.check_loss(self.loss)

    @property
    def criterion(self) -> OwnLoss:
        """What is minimised."""
        return output_loss if self.loss is None else self.loss

    @property
    def unpacking(self) -> Unpacking:
        """How a batch is taken apart."""
        return Unpacking(self.unpack, own_loss=self.loss is None)


LEAST_PLACED: Final = 3
"""Epochs that ``auto`` needs beside a frozen model: one to audition its places, two in which seeds, felt from birth,
learn."""


def check_life(choices: OwnChoices, policy: Policy) -> None:
    """Raise ``UsageError`` where no seed can live long enough to be kept, or to take part in what is delivered."""
    budget = choices.budget
    life = LEAST_PLACED if choices.at == "beside" and isinstance(policy, AutoPolicy) else budget.gates.shortest_life()
    if budget.epochs < life and not isinstance(policy, StaticPolicy):
        raise UsageError(
            f"Budget.epochs is {budget.epochs}, and by Budget.gates a seed is kept after {life} at the earliest: "
            "nothing could grow; validate more often (grow(steps_per_epoch=...), after_epoch() in mid-epoch, the "
            "Trainer's eval_steps or val_check_interval), train longer, or ask for fewer epochs: "
            "GateThresholds(min_training_epochs=..., min_holding_epochs=...)"
        )


def tell_of_short(budget: Budget, policy: Policy, view: EnvView) -> None:
    """Warn where a loop that was not said to be short was left before any seed could be kept, and none grew."""
    life = budget.gates.shortest_life()
    unsaid = budget.epochs == Budget().epochs and not isinstance(policy, StaticPolicy)
    if unsaid and 0 < view.epoch < life and not view.live_seeds:
        warnings.warn(
            f"the block was left after epoch {view.epoch}, and by Budget.gates a seed is kept after {life} at the"
            " earliest: nothing has grown; train longer, or say Budget(epochs=...) to hear it before the first batch",
            stacklevel=4,
        )


def chosen_for(choices: OwnChoices, model: nn.Module, policy: Policy) -> OwnChoices:
    """The choices with what the policy decides where the user has not: how many seeds, and where they may be."""
    budget, at = choices.budget, choices.at
    places = isinstance(policy, AutoPolicy)
    if budget.max_seeds == "policy":
        budget = replace(budget, max_seeds=None if places else 2)
    if places and at == "auto" and not any(map(nn.parameter.is_lazy, model.parameters())):
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        at = "beside" if is_held(sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)) else "auto"
    return replace(choices, budget=budget, at=at)


@dataclass(frozen=True, slots=True)
class _OwnTask:
    metric: Metric
    sites: dict[str, Site]
    blueprints: tuple[str, ...]
    loss_figure: SplitFigure
    metric_figure: SplitFigure


class _OwnLoop:
    """Batches that are not drawn here: the user's loop has them."""

    def __len__(self) -> int:
        return 0

    def epoch(self) -> Iterator[Batch]:
        """None."""
        return iter(())

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A user's model, ready to grow. ``setup.batches`` is empty until a loader is put there."""

    task: _OwnTask
    setup: TrainingSetup
    choices: OwnChoices
    device: str

    @classmethod
    def of(
        cls, model: nn.Module, loaders: Mapping[str, Loader], choices: OwnChoices, optimizer: Optimizer | None
    ) -> OwnModel:
        """Move the model to its device and find out all that growing needs to know. ``loaders``: by split."""
        ranks = present()
        device = pick_device(place(choices.device))
        model.to(device)
        ignored = ignored_by(choices.metric, choices.loss)
        splits = {
            name: LoadedSplit(name, loader, choices.unpacking, device, ignored) for name, loader in loaders.items()
        }
        validation = splits["validation"]
        with validation.reading(None) as batches:
            first = next(batches)
        fill_lazy(model, ForwardCall(first[0], choices.forward))
        check_host(model)
        if choices.precision == "16-mixed" and sharding_in(model) is not None:
            raise UsageError("precision '16-mixed' with a host of fully_shard; legal: 'bf16-mixed', or as the model is")
        start_alike(ranks, model, optimizer, splits)
        sample, examples = _few(model, choices.forward, first, validation.counted)
        checks.check_model(model, choices.forward, sample)
        loss, scored = _figures(model, choices, first, validation)
        return cls(
            _OwnTask(
                metric=scored.metric,
                sites=_sites(model, choices.at, ForwardCall(sample, choices.forward)),
                blueprints=choices.budget.blueprints or blueprints.everything(),
                loss_figure=loss,
                metric_figure=scored.figure,
            ),
            TrainingSetup(
                host=model,
                optimizer=optimizer or adamw(trainable(model), choices.budget.lr, 0.01),
                batches=_OwnLoop(),
                splits=splits,
                sample=sample,
                sample_examples=examples,
                criterion=choices.criterion,
                forward=choices.forward,
                counted=validation.counted,
                ranks=ranks,
            ),
            choices,
            device,
        )

    @property
    def ranks(self) -> Ranks:
        """The processes that train it together."""
        return self.setup.ranks

    @property
    def host_parameters(self) -> int:
        """Parameters of the model before it grew."""
        return sum(parameter.numel() for parameter in self.setup.host.parameters())

    def examples(self) -> dict[str, int]:
        """What the splits hold: examples, or batches where those cannot be counted; and what counterfactuals read."""
        splits, budget = self.setup.splits, self.choices.budget
        unit = "" if self.setup.counted else " batches"
        held = {f"{name}{unit}": len(split) for name, split in splits.items()}
        if budget.counterfactual_share < 1.0:
            reading = Reading(budget.evaluation_batch, budget.counterfactual_share)
            held["batches for counterfactuals"] = reading.paired(splits["validation"].parts(reading.most))
        return held

    def executor(self, emit: Sink) -> Executor:
        """An executor of one env, the model itself."""
        budget, metric = self.choices.budget, self.task.metric
        shape = "external" if isinstance(self.setup.batches, _OwnLoop) else budget.schedule
        config = EngineConfig(
            TrainerConfig(
                device=self.device,
                lr=float(self.setup.optimizer.param_groups[0]["lr"]),
                schedule=ScheduleConfig(shape=shape, seed_multiplier=budget.seed_lr_multiplier),
                precision=self.choices.precision,
                slot=SlotConfig(generations=budget.generations, fold=budget.fold and budget.previous is None),
                thresholds=budget.gates,
                evaluation_batch=budget.evaluation_batch,
                counterfactual_share=budget.counterfactual_share,
            ),
            max_seeds=None if budget.max_seeds == "policy" else budget.max_seeds,
            parameter_budget=self.host_parameters if budget.parameters is None else budget.parameters,
            rehearse_export=True,
        )
        engine = ModuleEngine(self.task, lambda spec, streams: self.setup, config, emit)
        governor = GovernorConfig(snapshot_every=budget.snapshot_every)
        return Executor(
            engine,
            metric,
            emit,
            lambda sink: Governor(metric, governor, on_telemetry=sink, device=self.device),
            ExecutorConfig(budget.counterfactual_every, test="test" in self.setup.splits, deliver="best"),
        )

    def subject(self, policy: Policy, seed: int = 0) -> dict[str, Any]:
        """What a run is about: it can be resumed with this and nothing else. JSON-able."""
        host, budget = self.setup.host, self.choices.budget
        name = f"{type(host).__module__}.{type(host).__qualname__}"
        return {
            "model": f"{name} of {self.host_parameters:,} parameters ({digest_of(host)})",
            "places": {slot: str(site) for slot, site in self.task.sites.items()},
            "blueprints": list(self.task.blueprints),
            "examples": self.examples(),
            BATCHES: len(self.setup.batches),
            "optimizer": type(self.setup.optimizer).__name__,
            "metric": self.task.metric.name,
            "precision": self.choices.precision,
            "policy": policy.name,
            "seed": seed,
            "device": kind_of(self.device),
            **{f"Budget.{each.name}": repr(getattr(budget, each.name)) for each in fields(budget) if each.compare},
        }

    def announcement(self, policy: Policy) -> Announcement:
        """What is about to run."""
        return Announcement(
            task=type(self.setup.host).__name__,
            policy=policy.name,
            metric=self.task.metric,
            slots=tuple(self.task.sites),
            blueprints=self.task.blueprints,
            episodes=1,
            envs=1,
            max_epochs=self.choices.budget.epochs,
            device=self.device,
            examples=self.examples(),
            host_parameters=self.host_parameters,
            host=host_record(
                self.setup.host,
                self.task.sites,
                ForwardCall(self.setup.sample, self.setup.forward),
                self.setup.sample_examples,
            ),
        )


def _few(model: nn.Module, forward: Forward, batch: CountedBatch, counted: bool) -> tuple[Any, int]:
    """The inputs of two examples of a batch, and how many they are; all of it where the model does not take those."""
    inputs, _, n = batch
    if not counted or n <= 2:
        return inputs, n
    try:
        few = part(inputs, torch.arange(2), n)
        with trial(model):
            forward(model, few)
    except Exception:  # a user's model may raise anything
        return inputs, n
    return few, 2


def _figures(
    model: nn.Module, choices: OwnChoices, first: CountedBatch, validation: LoadedSplit
) -> tuple[SplitFigure, Judged]:
    """Loss and metric as the user has them, tried on the first validation batch.

    Raises ``DataError`` where the model does not take it, ``UsageError`` where it cannot be judged.
    """
    inputs, targets, size = first
    n = size if validation.counted else None
    budget = choices.budget
    batches = Reading(None, budget.counterfactual_share).paired(validation.parts(None))
    with trial(model):
        try:
            with no_wrapper_called():
                output = choices.forward(model, inputs)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the model does not take the first validation batch, {shape_of(inputs)}: {error}"
                + _how_it_was_called(model, choices, inputs)
            ) from error
        own = None
        if choices.loss is None:
            loss, own = own_output_loss(output, targets, batches, n)
        else:
            loss = own_loss(choices.loss, output, targets, batches, n)
        answered = choices.loss if own is None else own.loss
        judged = judged_by(
            choices.metric, FirstBatch(output, targets, n, answered, loss, validation, validation.targets, own)
        )
    if budget.evaluation_batch is not None and (loss.each is None or choices.loss is None):
        raise UsageError(
            "Budget.evaluation_batch divides batches, and the loss has no value by example that allows it; leave it out"
        )
    return loss, judged if validation.counted else replace(judged, figure=by_batch(judged.figure))


def _how_it_was_called(model: nn.Module, choices: OwnChoices, inputs: Any) -> str:
    """What may be wrong with a call that failed, and how to say another."""
    told = ""
    if choices.loss is None:
        told += "; no loss was given, so that the model is called with the whole batch, to compute its own"
    if choices.forward is call:
        strange = not_taken(model, inputs)
        told += f"; its forward takes no {', '.join(strange)}" if strange else ""
        told += "; forward=lambda model, inputs: ... says how to call it"
    return told


def _sites(model: nn.Module, at: Sites, sample: Sample) -> dict[str, Site]:
    """slot -> site; a slot that was not named is called after its path."""
    if isinstance(at, str) and at not in ("auto", "beside"):
        raise UsageError(f"at={at!r}; legal: 'auto', 'beside', a list of submodule paths, or a mapping slot -> path")
    if at == "beside":
        return named_sites(beside_sites(model, sample))
    return named_sites(auto_sites(model, sample) if at == "auto" else spread(model, at))


def loaders_of(val: Loader, test: Loader | None) -> dict[str, Loader]:
    """By split."""
    return {"validation": val} | ({} if test is None else {"test": test})


def opening_of(own: OwnModel, policy: Policy, run_dir: str | Path | None) -> RunOpening:
    """How the run opens that grows the model."""
    given = None if run_dir is None else str(Path(run_dir).absolute())
    base = str(Path("runs").absolute())  # user code may change directory meanwhile
    return RunOpening(SessionConfig(LIBRARY, given, base, ranks=own.ranks), own.announcement(policy), DeferredSink())


def kept(opening: RunOpening, subject: Mapping[str, Any], every: int, resume: str | Path | None) -> RunOpening:
    """The opening of a run that writes checkpoints, and goes on from those of ``resume``."""
    ranks = opening.session.ranks
    require_same(ranks, {**subject, "resume": None if resume is None else str(resume)})
    about = CheckpointInfo(LIBRARY, {}, subject, how="grow(..., resume={run!r}) goes on")
    opening = replace(opening, about=about, checkpoint_every=every)
    if resume is None:
        return opening
    if opening.session.run_dir is not None and Path(opening.session.run_dir) != Path(resume).absolute():
        raise UsageError(f"run_dir={opening.session.run_dir!r} with resume={str(resume)!r}: a run goes on where it is")
    past = find_newest(Path(resume), LIBRARY, subject, ranks)
    return replace(opening, session=replace(opening.session, resume=past.point), past=past)
