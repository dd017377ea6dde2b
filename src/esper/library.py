"""``grow``: capacity where it helps, in your own model, and a plain model back.

result = grow(model, train=train_loader, val=val_loader, loss=nn.CrossEntropyLoss(), metric="accuracy")
torch.save(result.model.state_dict(), "grown.pt")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from esper.karn.evidence import Evidence
from esper.karn.report import read_evidence, write_report
from esper.kasmina import blueprints
from esper.kasmina.auto import auto_sites
from esper.kasmina.gates import GateThresholds
from esper.kasmina.layout import Layout
from esper.leyline import Metric, Policy, TelemetryEventType, UsageError
from esper.simic.assembly import pick_device
from esper.simic.own import Loader, Scored, TrainingLoss, call_arguments, per_example, scored_by
from esper.simic.session import Announcement, SessionConfig, open_session
from esper.simic.training import Plan, run_episodes
from esper.tamiyo.policies import make_policy
from esper.tasks.base import PerExample
from esper.tasks.loader import LoaderBatches, gather
from esper.tolaria.engine import EngineConfig, ModuleEngine
from esper.tolaria.executor import Executor, ExecutorConfig
from esper.tolaria.governor import Governor
from esper.tolaria.material import Forward, Material, TrainerConfig, adamw, call
from esper.tolaria.schedules import ScheduleConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train and how much may grow."""

    epochs: int = 20
    max_seeds: int | None = 2
    """Most seeds alive at once."""
    parameters: int | None = None
    """Most parameters of all live seeds together; ``None`` is as many as the host has."""
    blueprints: tuple[str, ...] | None = None
    """What may grow; ``None`` is everything that fits."""
    lr: float = 1e-3
    """Learning rate of the AdamW that is made where no optimizer is given."""
    seed_lr_multiplier: float = 2.0
    """A new seed's peak rate over the host's."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rates move over the epochs."""


@dataclass(frozen=True, slots=True)
class GrowResult:
    """A plain model that needs no Esper, the evidence for every seed, and where the run is kept."""

    model: nn.Module
    report: Evidence
    run_dir: Path


@dataclass(frozen=True, slots=True)
class _OwnModel:
    """The user's model as a subject. See :class:`esper.tolaria.material.Subject`."""

    metric: Metric
    sites: dict[str, str]
    blueprints: tuple[str, ...]
    loss: PerExample
    score: PerExample


def grow(  # noqa: PLR0913
    model: nn.Module,
    *,
    train: Loader,
    val: Loader,
    test: Loader | None = None,
    loss: TrainingLoss,
    metric: str | Scored = "accuracy",
    optimizer: Optimizer | None = None,
    forward: Forward = call,
    at: str | Sequence[str] | Mapping[str, str] = "auto",
    policy: str | Policy = "heuristic",
    budget: Budget | None = None,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
) -> GrowResult:
    """Train ``model`` and let it grow where measurement shows that it pays.

    ``train``, ``val`` and ``test`` give batches of ``(inputs, targets)`` and can be read again each epoch, such as a
    ``DataLoader``; validation drives every decision, test is looked at once. ``loss`` maps ``(output, targets)`` to a
    scalar. ``metric`` is ``"accuracy"`` (percent), ``"loss"``, ``"mae"`` or a :class:`Scored` of your own.
    ``forward(model, inputs)`` says how to call the model where ``model(inputs)`` does not. ``at`` names submodules by
    path (``["layer3.1"]``), or ``"auto"``. An ``optimizer`` that has trained already keeps its state. The model is
    trained in place; the one in the result is a plain copy.

    Raises ``UsageError`` or ``DataError`` naming what is wrong and what is legal.
    """
    budget = budget or Budget()
    where = pick_device(device)
    model.to(where)
    loaders = {"validation": val} | ({} if test is None else {"test": test})
    splits = {name: gather(loader).to(where) for name, loader in loaders.items()}
    scored = scored_by(metric, loss, splits["validation"])
    chosen = budget.blueprints or tuple(dict.fromkeys(name for layout in Layout for name in blueprints.names(layout)))
    sample = call_arguments(model, forward, splits["validation"].inputs[:2])
    subject = _OwnModel(scored.metric, _sites(model, at, sample), chosen, per_example(loss), scored.score)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError("the model has no parameter that requires a gradient; unfreeze what may be trained")
    material = Material(
        host=model,
        optimizer=optimizer or adamw(trained, budget.lr, 0.01),
        batches=LoaderBatches(train, device=where),
        splits=splits,
        sample=sample,
        criterion=loss,
        forward=forward,
    )
    decider = make_policy(policy) if isinstance(policy, str) else policy
    with open_session(SessionConfig("library", None if run_dir is None else str(run_dir))) as session:
        engine = ModuleEngine(subject, lambda spec, streams: material, _config(material, scored, budget), session.emit)
        executor = Executor(
            engine,
            scored.metric,
            session.emit,
            lambda sink: Governor(scored.metric, on_telemetry=sink, device=where),
            ExecutorConfig(test=test is not None),
        )
        session.announce("library", _announcement(subject, decider, material, budget, where))
        for _ in run_episodes(executor, {decider.name: decider}, Plan(1, budget.epochs, seed)):
            grown = engine.materialise(0)
            exported = engine.save(0, session.directory.model)
            session.say(TelemetryEventType.MODEL_EXPORTED, **{**asdict(exported), "formats": list(exported.formats)})
    write_report(session.path)
    return GrowResult(grown, read_evidence(session.path)[0], session.path)


def _sites(model: nn.Module, at: str | Sequence[str] | Mapping[str, str], sample: Any) -> dict[str, str]:
    """slot -> path; a slot that was not named is called after its path."""
    if isinstance(at, Mapping):
        return dict(at)
    if isinstance(at, str) and at != "auto":
        raise UsageError(f"at={at!r}; legal: 'auto', a list of submodule paths, or a mapping slot -> path")
    paths = auto_sites(model, sample) if at == "auto" else at
    return {path.replace(".", "_"): path for path in paths}


def _config(material: Material, scored: Scored, budget: Budget) -> EngineConfig:
    size = sum(parameter.numel() for parameter in material.host.parameters())
    return EngineConfig(
        TrainerConfig(
            device=str(next(material.host.parameters()).device),
            lr=float(material.optimizer.param_groups[0]["lr"]),
            schedule=ScheduleConfig(shape=budget.schedule, seed_multiplier=budget.seed_lr_multiplier),
            thresholds=GateThresholds(unit=scored.metric.unit),
        ),
        max_seeds=budget.max_seeds,
        parameter_budget=size if budget.parameters is None else budget.parameters,
    )


def _announcement(subject: _OwnModel, policy: Policy, material: Material, budget: Budget, device: str) -> Announcement:
    return Announcement(
        task=type(material.host).__name__,
        policy=policy.name,
        metric=subject.metric,
        slots=tuple(subject.sites),
        blueprints=subject.blueprints,
        episodes=1,
        envs=1,
        max_epochs=budget.epochs,
        device=device,
        examples={name: len(split) for name, split in material.splits.items()},
        host_parameters=sum(parameter.numel() for parameter in material.host.parameters()),
    )
