"""``grow``: capacity where it helps, in your own model, and a plain model back. ``Grower``: the same in your own loop.

result = grow(model, train=train_loader, val=val_loader, loss=nn.CrossEntropyLoss(), metric="accuracy")
torch.save(result.model.state_dict(), "grown.pt")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.karn.evidence import RunEvidence
from esper.karn.report import read_evidence, write_report
from esper.leyline import EnvSpec, EnvView, GateThresholds, Policy, TelemetryEventType, UsageError
from esper.run.open import RunOpening, open_run
from esper.run.own import Budget, Loader, OwnChoices, OwnModel
from esper.run.play import EpisodePlan, run_episodes
from esper.run.resume import DeferredSink
from esper.run.session import Session, SessionConfig
from esper.tamiyo.policies import make_policy
from esper.tamiyo.policies.learned import SHIPPED
from esper.tasks.answers import Accuracy
from esper.tasks.loader import LoaderBatches
from esper.tasks.losses import OwnLoss
from esper.tasks.metrics import MetricChoice, Scored
from esper.tolaria import surgery
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.executor import Executor, StepReport
from esper.tolaria.setup import Forward, call

__all__ = ["Accuracy", "Budget", "GateThresholds", "GrowResult", "Grower", "OwnChoices", "Scored", "grow"]


@dataclass(frozen=True, slots=True)
class GrowResult:
    """The result of growing."""

    model: nn.Module
    """A plain model in evaluation mode, which needs no Esper."""
    report: RunEvidence
    """The evidence for every seed; ``report.table`` prints as the end table."""
    run_dir: Path
    """Holds the journal, the report and the exported model."""


def grow(  # noqa: PLR0913
    model: nn.Module,
    *,
    train: Loader,
    val: Loader,
    test: Loader | None = None,
    loss: OwnLoss,
    metric: MetricChoice = "accuracy",
    optimizer: Optimizer | None = None,
    forward: Forward = call,
    at: str | Sequence[str] | Mapping[str, str] = "auto",
    policy: str | Policy = SHIPPED,
    budget: Budget | None = None,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
) -> GrowResult:
    """Train ``model`` and let it grow where measurement shows that it pays.

    ``train``, ``val`` and ``test`` give batches of ``(inputs, targets)`` and can be read again each epoch, such as a
    ``DataLoader``; validation drives every decision, test is looked at once. ``loss`` maps ``(output, targets)`` to a
    scalar, and is evaluated as it reduces itself, on whole batches. ``metric`` is ``"accuracy"`` (percent; an
    :class:`Accuracy` where shapes do not tell what is asked), ``"loss"``, ``"mae"``, an object with ``update``,
    ``compute`` and ``reset`` that reduces over a split (torchmetrics), a function ``(output, targets) -> [N]`` of which
    more is better, or a :class:`Scored` that says what it is. ``budget.gates`` is what a seed must show.
    ``forward(model, inputs)`` says how to call the model where ``model(inputs)`` does not. ``at`` names submodules by
    path (``["layer3.1"]``), or ``"auto"``. ``policy`` is a name (``esper-v1``, ``heuristic``, ``frugal``, ``static``,
    ...), a learned one's file, or a policy of your own. An ``optimizer`` that has trained already keeps its state. The
    model is trained in place; the one in the result is a plain copy.

    Raises ``UsageError`` or ``DataError`` naming what is wrong and what is legal.
    """
    choices = OwnChoices(loss, metric, forward, at, budget or Budget(), device)
    own = OwnModel.of(model, _splits(val, test), choices, optimizer)
    own = replace(own, setup=replace(own.setup, batches=LoaderBatches(train, device=own.device)))
    decider = make_policy(policy) if isinstance(policy, str) else policy
    opening = _opening(own, decider, run_dir)
    executor = own.executor(opening.sink.emit)
    with open_run(opening) as session:
        for _ in run_episodes(executor, {decider.name: decider}, EpisodePlan(1, choices.budget.epochs, seed)):
            grown = _write_model(session, executor)
    return _result(grown, session)


class Grower:
    """The callbacks of :func:`grow`, for a training loop of your own::

        with Grower(model, optimizer, val=val_loader, choices=OwnChoices(loss=criterion)) as grower:
            for epoch in range(20):
                for inputs, targets in train_loader:
                    optimizer.zero_grad()
                    grower.loss(inputs, targets).backward()
                    grower.after_backward()
                    optimizer.step()
                grower.after_epoch()
        plain = grower.result.model

    Seeds get parameter groups of their own in your optimizer, at ``seed_lr_multiplier`` times its rate; the rate of the
    host's groups is left to you. A learning-rate scheduler is stepped by :meth:`step_scheduler`. ``budget.epochs`` must
    be the number of epochs that you will train.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        val: Loader,
        test: Loader | None = None,
        choices: OwnChoices,
        policy: str | Policy = SHIPPED,
        run_dir: str | Path | None = None,
    ) -> None:
        self._own = OwnModel.of(model, _splits(val, test), choices, optimizer)
        self._policy = make_policy(policy) if isinstance(policy, str) else policy
        self._opening = _opening(self._own, self._policy, run_dir)
        self._executor = self._own.executor(self._opening.sink.emit)
        self._stack = ExitStack()
        self._result: GrowResult | None = None

    @property
    def result(self) -> GrowResult:
        """The plain model and the evidence. Raises ``UsageError`` before the ``with`` block has ended."""
        if self._result is None:
            raise UsageError("the grown model is there when the with block has ended")
        return self._result

    def __enter__(self) -> Self:
        self._session = self._stack.enter_context(open_run(self._opening))
        spec = EnvSpec(0, 0, 0, self._own.choices.budget.epochs, self._policy.name, self._policy.name)
        self._views = self._executor.reset([spec])
        self._policy.reset([spec])
        self._under_way = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._executor.finish(self._policy.decide(self._views))
            grown = _write_model(self._session, self._executor)
        self._result = _result(grown, self._session)

    @property
    def view(self) -> EnvView:
        """What has grown so far, and what was measured of it."""
        return self._views[0]

    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """Training loss of one batch; call ``backward`` on it, then :meth:`after_backward`."""
        if not self._under_way:
            self._executor.begin(self._policy.decide(self._views))
            self._engine.begin_epoch(0)
            self._under_way = True
        return self._engine.trainer(0).loss(inputs, targets)

    def after_backward(self) -> None:
        """Teach the seeds behind the host. Your optimizer steps next."""
        self._engine.trainer(0).after_backward()

    def step_scheduler(self, scheduler: LRScheduler, *metrics: Any) -> None:
        """Step a scheduler of ``torch.optim.lr_scheduler``, whenever you would; seeds follow what it does to the host.

        ``metrics`` is what ``ReduceLROnPlateau`` asks for. A scheduler's own ``step`` fails once a seed has joined the
        optimizer, since it counts the parameter groups.
        """
        surgery.step_scheduler(scheduler.optimizer, lambda: scheduler.step(*metrics))

    def after_epoch(self) -> StepReport:
        """Validate and judge. What the policy makes of it is done before the next epoch's first batch."""
        (report,) = self._executor.complete([self._engine.trainer(0).end_epoch()])
        self._views = [report.view]
        self._under_way = False
        return report

    @property
    def _engine(self) -> ModuleEngine:
        assert isinstance(self._executor.engine, ModuleEngine)
        return self._executor.engine


def _opening(own: OwnModel, policy: Policy, run_dir: str | Path | None) -> RunOpening:
    where = SessionConfig("library", None if run_dir is None else str(run_dir))
    return RunOpening(where, own.announcement(policy), DeferredSink())


def _splits(val: Loader, test: Loader | None) -> dict[str, Loader]:
    return {"validation": val} | ({} if test is None else {"test": test})


def _write_model(session: Session, executor: Executor) -> nn.Module:
    exported = executor.engine.save(0, session.directory.model)
    session.say(TelemetryEventType.MODEL_EXPORTED, **{**asdict(exported), "formats": list(exported.formats)})
    grown: nn.Module = executor.engine.materialise(0)
    return grown


def _result(grown: nn.Module, session: Session) -> GrowResult:
    write_report(session.path)
    return GrowResult(grown, read_evidence(session.path)[0], session.path)
