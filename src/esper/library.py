"""``grow``: capacity where it helps, in your own model, and a plain model back. ``Grower``: the same in your own loop.

result = grow(model, train=train_loader, val=val_loader, loss=nn.CrossEntropyLoss(), metric="accuracy")
torch.save(result.model.state_dict(), "grown.pt")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from esper.delivery import Delivery, GrowResult
from esper.kasmina.exposure import Exposure
from esper.kasmina.leaving import leave
from esper.kasmina.sharded import resting
from esper.kasmina.sites import Sites
from esper.kasmina.trial import modes_kept
from esper.leyline import EnvView, GateThresholds, Policy, UsageError
from esper.run.checks import check_optimizer, made, whole
from esper.run.loop import OwnLoop
from esper.run.own import (
    Budget,
    Loader,
    OwnChoices,
    OwnModel,
    check_life,
    chosen_for,
    kept,
    loaders_of,
    opening_of,
    tell_of_short,
)
from esper.run.packed import pack, unpack
from esper.run.play import EpisodePlan, Episodes
from esper.run.previous import Previous, given_back, require_none
from esper.run.resume import LIBRARY, CheckpointInfo, Snapshot, find_state
from esper.run.together import check_shared_out, led
from esper.run.wrapped import quiet, unwrapped
from esper.tamiyo.policies import chosen_policy
from esper.tamiyo.policies.learned import SHIPPED
from esper.tasks.answers import Accuracy
from esper.tasks.loader import LoaderBatches, Unpack
from esper.tasks.losses import OwnLoss
from esper.tasks.metrics import MetricChoice, Scored
from esper.tolaria.alone import host_alone
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.executor import StepReport
from esper.tolaria.observed import ObservedStep
from esper.tolaria.ranks import require_same
from esper.tolaria.rates import Schedulers, follow, innermost, rates_kept
from esper.tolaria.setup import Forward, call
from esper.tolaria.surgery import join_seeds

__all__ = ["Accuracy", "Budget", "GateThresholds", "GrowResult", "Grower", "OwnChoices", "Scored", "grow"]


def grow(  # noqa: PLR0913
    model: nn.Module,
    *,
    train: Loader,
    val: Loader,
    test: Loader | None = None,
    loss: OwnLoss | None = None,
    metric: MetricChoice = "accuracy",
    optimizer: Optimizer | None = None,
    forward: Forward = call,
    at: Sites = "auto",
    policy: str | Policy = SHIPPED,
    budget: Budget | None = None,
    seed: int = 0,
    device: str = "auto",
    run_dir: str | Path | None = None,
    precision: str | None = None,
    resume: str | Path | None = None,
    unpack: Unpack | None = None,
    steps_per_epoch: int | None = None,
) -> GrowResult:
    """Train ``model`` and let it grow where measurement shows that it pays.

    ``train``, ``val`` and ``test`` can be read again each epoch, such as a ``DataLoader``; validation drives every
    decision, test is looked at once. A batch is ``(inputs, targets)``, each a tensor, or tuples, lists and mappings of
    them; ``unpack(batch)`` makes that of any other. ``steps_per_epoch`` is for a ``train`` without a length. ``loss``
    maps ``(output, targets)`` to a scalar, and is evaluated as it reduces itself, on whole batches; without it the
    model is given the whole batch, and its output has the ``loss``. ``metric`` is ``"accuracy"`` (percent; an
    :class:`Accuracy` where shapes do not tell what is asked), ``"loss"``, ``"mae"``, an object with ``update``,
    ``compute`` and ``reset`` that reduces over a split (torchmetrics), a function ``(output, targets) -> [N]`` of which
    more is better, or a :class:`Scored` that says what it is. ``budget.gates`` is what a seed must show.
    ``forward(model, inputs)`` says how to call the model; see :class:`OwnChoices`. ``at`` names submodules by path
    (``["layer3.1"]``), or ``"auto"``. ``policy`` is a name (``esper-v1``, ``auto``, ``heuristic``, ``static``, ...),
    a learned one's file, or a policy of your own. An ``optimizer`` that has trained already keeps its state. The model
    is trained in place; the one in the result is a plain copy. None that was seen was better on validation, and
    whatever breaks the run off leaves the best so far in the run directory; a note on the error says where.

    ``precision`` is ``"bf16-mixed"`` or ``"16-mixed"`` (autocast, the latter with a scaled loss), or as the model is.
    What is in ``eval()`` stays so, such as a frozen backbone. A model that is in ``eval()`` as a whole, as a pretrained
    one comes, is trained, but for parts that are frozen. Where all of it is, only seeds learn.

    Raises ``UsageError`` or ``DataError`` naming what is wrong and what is legal.
    """
    choices = OwnChoices(loss, metric, forward, at, Budget() if budget is None else budget, device, precision, unpack)
    whole("seed", seed, least=0)
    whole("steps_per_epoch", steps_per_epoch, optional=True)
    made("model", model, nn.Module)
    model, wrapper = unwrapped(model)
    decider = chosen_policy(policy)
    before = Previous.of(model, choices.budget, optimizer)
    with resting(model), given_back(before):
        choices = chosen_for(choices, model, decider)
        check_life(choices, decider)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        batches = LoaderBatches(train, batches=steps_per_epoch, unpacking=choices.unpacking)
        own = OwnModel.of(model, loaders_of(val, test), choices, optimizer)
        check_shared_out(own.ranks, train)
        batches.device = own.device
        own = replace(own, setup=replace(own.setup, batches=batches))
        own, reused = (own, {}) if before is None else before.try_on(own)
        opening, delivery = opening_of(own, decider, run_dir), Delivery()
        executor = delivery.executor = own.executor(opening.sink.emit)
        plan = EpisodePlan(1, choices.budget.epochs, seed)
        episodes = Episodes(
            executor, {decider.name: led(decider, own.ranks)}, plan, None if before is None else before.stays
        )
        opening = kept(opening, own.subject(decider, seed) | reused, choices.budget.checkpoint_every, resume)
        optimizer = own.setup.optimizer
        with quiet(wrapper), _leaving(model, optimizer), rates_kept(optimizer), modes_kept(model):
            with delivery.outlasting(opening, episodes):
                for (result,), _ in episodes:
                    delivery.write(result)
        return delivery.result()


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

    Seeds get parameter groups of their own in your optimizer. They take the options of the group whose parameters stand
    around them, and ``seed_lr_multiplier`` times its rate at every step, however you move it: a scheduler, or by hand.
    ``budget.epochs`` is the most epochs that you will train; leave the block earlier whenever you like. The model is
    then the best that was validated, in place and as ``result.model``, also where an error or Ctrl-C ends the block.
    In place it is a plain model with what was kept built in, ready to be trained on or grown again: the optimizer holds
    its parameters, those of seeds in the group that they grew beside, so that schedulers go on too.

    Within, ``model.parameters()`` gives the seeds too: ``clip_grad_norm_`` and ``model.zero_grad()`` reach them.
    Do to the loss what you would: scale it (``GradScaler``), share it out over micro-batches, add several of them up,
    under ``torch.autocast`` or not. :meth:`after_backward` comes right after ``backward``, before gradients are
    unscaled or clipped. ``train()`` and ``eval()`` are yours to call; nothing here changes a module's mode. Where all
    of the model is frozen, an optimizer is made with ``[{"params": []}]`` and seeds join it.
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
        made("model", model, nn.Module)
        model, self._wrapper = unwrapped(model)
        made("choices", choices, OwnChoices)
        check_optimizer(model, optimizer)
        require_none(choices.budget)
        if choices.budget.schedule != "constant":
            raise UsageError(
                f"Budget.schedule is {choices.budget.schedule!r}; in a loop of your own the rates are yours to move:"
                " step a scheduler of torch.optim.lr_scheduler"
            )
        self._policy = chosen_policy(policy)
        choices = chosen_for(choices, model, self._policy)
        check_life(choices, self._policy)
        self._optimizer = innermost(optimizer)
        with resting(model):
            self._own = OwnModel.of(model, loaders_of(val, test), choices, self._optimizer)
            self._subject = self._own.subject(self._policy)
            require_same(self._own.ranks, self._subject)
            self._opening = opening_of(self._own, self._policy, run_dir)
            decider = led(self._policy, self._own.ranks)
            self._loop = OwnLoop(self._own.executor(self._opening.sink.emit), decider, choices.budget.epochs)
        self._delivery = Delivery()
        self._entered = False
        self._exposures: list[Exposure] = []
        self._saved = False
        """Whether the run was saved since the last batch."""
        self._told = False
        self._schedulers, self._stack = Schedulers(self._optimizer), ExitStack()

    @property
    def result(self) -> GrowResult:
        """The plain model and the evidence. Raises ``UsageError`` before the ``with`` block has ended."""
        return self._delivery.result()

    def state_dict(self) -> dict[str, Any]:
        """All it takes to go on with the run, for a checkpoint of your own::

            torch.save({"growth": grower.state_dict(), "scheduler": scheduler.state_dict()}, path)

        That is model and optimizer as they are, with all that grows in them, evidence, policy, random generators (those
        of torch, numpy and ``random`` too), and where the journal stands. ``torch.load(weights_only=True)`` reads it.
        Yours to save are a ``GradScaler``, schedulers, and where in the data you are. Raises ``UsageError`` outside the
        block, and between a loss and the :meth:`after_backward` that belongs to it.
        """
        if not self._entered:
            raise UsageError("grower.state_dict() is there inside the with block")
        if self._untaught:
            raise UsageError(
                "grower.state_dict() between loss() and after_backward(): call it before the batch, or after the step"
            )
        self._saved = True
        session = self._delivery.session
        about = CheckpointInfo(LIBRARY, {}, self._subject, tuple(self._loop.remarks()))
        shot = Snapshot.of(session, about, self._loop.state(), self._loop.least())
        return pack(shot, self._loop.views[0].epoch, session.path)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, in the same run directory; comes before the ``with`` block.

        Entering the block then puts everything back, topology first: the weights of the model, the optimizer, what has
        grown, and the random generators. Model and optimizer are fresh ones like those of the run; what they hold is
        overwritten. Raises ``UsageError`` or ``DataError`` where something differs from the run, or its directory is
        gone.
        """
        if self._entered or self._delivery.over:
            raise UsageError(
                "grower.load_state_dict() comes before the with block: make a Grower, load the state, then enter it"
            )
        loaded, run = unpack(state)
        asked = self._opening.session.run_dir
        run = run if asked is None else Path(asked)
        past = find_state(loaded, run, LIBRARY, self._subject, self._own.ranks)
        session = replace(self._opening.session, resume=past.point)
        self._opening = replace(self._opening, session=session, past=past)

    def goes_on_by(self, how: Callable[[], str]) -> None:
        """``how()`` says what to do where a rank was lost, for a framework that keeps :meth:`state_dict` itself."""
        self._delivery.how = how

    def __enter__(self) -> Self:
        loop = self._loop
        with ExitStack() as stack:
            stack.enter_context(quiet(self._wrapper))
            stack.enter_context(resting(self._own.setup.host))
            stack.enter_context(_leaving(self._own.setup.host, self._optimizer, self._exposures))
            self._delivery.executor = loop.executor
            stack.enter_context(self._delivery.outlasting(self._opening, loop))
            if self._opening.past is None:
                loop.begin()
            trainer = loop.trainer
            stack.enter_context(trainer.untouched.watching(trainer.model.host_parameters()))
            self._exposures.append(stack.enter_context(trainer.model.exposed()))
            stack.enter_context(host_alone(self._optimizer))
            self._untaught = self._stepped = False
            self._shielded: list[str] = []
            stack.callback(self._schedulers.release)
            stack.callback(self._optimizer.register_step_pre_hook(self._before_step).remove)
            self._shield()
            self._entered = True
            stack.callback(setattr, self, "_entered", False)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._tell_left_out()
            ended = self._loop.finish()
            self._delivery.write(ended)
            epoch = self._loop.views[0].epoch
            tell_of_short(self._own.choices.budget, self._policy, ended.view)
            if self._loop.under_way and epoch == 0:
                raise UsageError(
                    "after_epoch() was never called, so that nothing was measured and nothing could grow; call it when "
                    "the batches of an epoch are done"
                )
            if self._stepped and epoch == 0:
                raise UsageError(
                    "grower.loss() was never called, so that nothing was measured and nothing could grow; compute the "
                    "training loss by grower.loss(inputs, targets), which runs the model"
                )

    @property
    def view(self) -> EnvView:
        """What has grown so far, and what was measured of it."""
        if not self._loop.views:
            raise UsageError("grower.view is there inside the with block")
        return self._loop.views[0]

    def loss(self, inputs: Any, targets: Any = None, criterion: OwnLoss | None = None) -> Tensor:
        """Training loss of one batch; call ``backward`` on it, then :meth:`after_backward`.

        ``loss(batch)`` takes a batch apart as those of ``val`` are. ``criterion`` is another loss than that of the
        choices. Seeds behind the host learn from losses taken here.
        """
        if targets is None:
            inputs, targets = self._own.choices.unpacking(inputs, "the batch")
        self.begin_epoch()
        loss = self._loop.trainer.loss(inputs, targets, criterion)
        self._untaught = self._untaught or loss.requires_grad
        return loss

    @contextmanager
    def observing(self, step: ObservedStep, examples: int, times: float = 1.0) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within, a training framework makes its own step; see :meth:`esper.tolaria.trainer.Trainer.observing`."""
        self.begin_epoch()
        with self._loop.trainer.observing(step, examples, times) as taken:

            def told(loss: Tensor) -> Tensor:
                loss = taken(loss)
                self._untaught = self._untaught or loss.requires_grad
                return loss

            yield told

    def after_backward(self) -> None:
        """Teach the seeds behind the host. Your optimizer steps next."""
        if not self._loop.under_way:
            raise UsageError(f"after_backward() {_WITHOUT_LOSS}")
        self._loop.trainer.after_backward()
        self._untaught = False

    def step_scheduler(self, scheduler: LRScheduler, *metrics: Any) -> None:
        """Step a scheduler of ``torch.optim.lr_scheduler``; ``metrics`` is what ``ReduceLROnPlateau`` asks for.

        Its own ``step`` does the same, if it was made before the epoch in which a seed joined the optimizer.
        """
        self._schedulers.add(getattr(scheduler, "scheduler", scheduler))
        scheduler.step(*metrics)
        follow(self._optimizer)

    def after_epoch(self) -> StepReport:
        """Validate and judge. What the policy makes of it is done before the next epoch's first batch."""
        if not self._loop.under_way:
            raise UsageError(f"after_epoch() {_WITHOUT_LOSS}")
        self._tell_left_out()
        report = self._loop.end_epoch()
        self._untaught = False
        return report

    @property
    def under_way(self) -> bool:
        """Whether an epoch has begun, and :meth:`after_epoch` has not ended it."""
        return self._loop.under_way

    def begin_epoch(self) -> None:
        """Do what was decided after the last epoch. The epoch's first loss does, where it has not been done."""
        if not self._entered:
            raise UsageError("a Grower trains inside its with block: with Grower(model, optimizer, ...) as grower: ...")
        self._tell_left_out()
        if not self._loop.under_way:
            self._loop.begin_epoch()
            self._shield()

    def _tell_left_out(self) -> None:
        """Warn once where the model was saved while seeds lived, and the run was not."""
        (exposure,) = self._exposures
        if exposure.left_out and not self._saved and not self._told:
            self._told = True
            warnings.warn(
                f"model.state_dict() is the host's alone, without the seeds in {', '.join(sorted(exposure.left_out))}:"
                " save grower.state_dict() beside it, from which the run goes on with all that grows",
                stacklevel=4,
            )
        exposure.left_out.clear()
        self._saved = False

    def _shield(self) -> None:
        """Keep schedulers working where seeds have joined the optimizer since."""
        grown = list(self._loop.trainer.model.parts)
        if grown != self._shielded:
            self._schedulers.shield()
            self._shielded = grown

    def _before_step(self, optimizer: Optimizer, *arguments: Any) -> None:
        """Before every step of the user's optimizer."""
        self._stepped = True
        if self._untaught:
            raise UsageError("optimizer.step() without after_backward(); call it between loss.backward() and the step")
        follow(optimizer)

    @property
    def _engine(self) -> ModuleEngine:
        return self._loop.engine


_WITHOUT_LOSS: Final = "without a batch in this epoch; take its training loss by grower.loss(inputs, targets)"


@contextmanager
def _leaving(model: nn.Module, optimizer: Optimizer, exposures: Sequence[Exposure] = ()) -> Iterator[None]:
    """Afterwards, however it ends, the model is a plain one with what has grown, and its parameters are optimized."""
    try:
        yield
    finally:
        leave(model, [copied for exposure in exposures for copied in exposure.copies])
        join_seeds(optimizer, model)
