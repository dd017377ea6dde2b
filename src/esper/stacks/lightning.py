"""Growth as a callback of Lightning's ``Trainer``::

growth = GrowCallback(monitor="val_loss")
Trainer(max_epochs=20, callbacks=[growth]).fit(module, train_loader, val_loader)
grown = growth.result.model
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.leyline import MissingExtraError, Policy, UsageError
from esper.library import Budget, Grower, GrowResult, OwnChoices
from esper.stacks.common import attribute, examples_in, goes_on_from, require_known, undivided
from esper.tamiyo.policies.learned import SHIPPED
from esper.tolaria.missing import RankLost
from esper.tolaria.observed import ObservedStep, attributes_kept

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.trainer.states import TrainerFn
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("esper.stacks.lightning", "lightning") from error


WITHOUT_SEEDS: Final = (
    "these weights lack the seeds that grew: take the result's model (or model/ in the run directory), or go on by "
    "fit(ckpt_path=) with GrowCallback"
)
"""A key beside the weights in a checkpoint: what a strict load of them says."""


class GrowCallback(Callback):
    """Grows a LightningModule while ``Trainer`` trains it; neither is changed for it.

    ``at`` and ``budget`` are those of :class:`esper.library.OwnChoices`. An epoch of growth ends with the Trainer's
    own, or with each validation where ``val_check_interval`` has several in one; ``Budget.epochs`` is how many of these
    there will be, whatever the budget says. Growth is judged by the loss that ``validation_step`` logs as ``monitor``,
    over the Trainer's validation batches, or those of ``val``, a loader for this alone: their mean, as Lightning takes
    it.

    The training loss is what ``training_step`` gives. For a seed that learns behind the host the step is made a second
    time, on the same batch and the same chance: what it logs then, its metrics and the module's attributes are left
    alone; what it does to the world besides (a file that it writes) happens twice. With manual optimization, a step
    calls ``self.manual_backward`` once.

    Checkpoints hold the host's weights as ever, and seeds in the state of this callback; ``trainer.fit(ckpt_path=...)``
    goes on exactly. After ``fit`` the module is the best that was validated, and :attr:`result` has a plain copy.
    """

    def __init__(
        self,
        at: str | Sequence[str] | Mapping[str, str] = "auto",
        budget: Budget | None = None,
        *,
        monitor: str = "val_loss",
        val: Iterable[Any] | None = None,
        policy: str | Policy = SHIPPED,
        run_dir: str | Path | None = None,
    ) -> None:
        self.choices = OwnChoices(metric="loss", at=at, budget=budget or Budget(), forward=_Monitored(monitor))
        self.val, self.policy, self.run_dir = val, policy, run_dir
        self.grower: Grower | None = None
        """Once training has started."""
        self._state: dict[str, Any] = {}
        self._open, self._unmarking = ExitStack(), ExitStack()
        self._training = False

    @property
    def result(self) -> GrowResult:
        """The plain module and the evidence. Raises ``UsageError`` before ``fit`` has ended."""
        if self.grower is None:
            raise UsageError("the grown module is there when trainer.fit() has ended")
        return self.grower.result

    # --- what Lightning calls -------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the module take a checkpoint of its own Trainer, whose mark is for those without this callback."""
        self._unmarking.close()
        hook = pl_module.register_load_state_dict_pre_hook(_without_mark)  # type: ignore[no-untyped-call]
        self._unmarking.callback(hook.remove)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._unmarking.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark weights that are the host's alone while seeds have a part in what was validated, so that no strict load
        takes them for the model of that figure."""
        if self.grower is not None and self._training and any(slot.alpha > 0.0 for slot in self.grower.view.slots):
            checkpoint["state_dict"][WITHOUT_SEEDS] = torch.zeros(0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint for anything but training: its weights are the host's alone."""
        if trainer.state.fn is not TrainerFn.FITTING:
            raise UsageError(
                "the checkpoint's weights are the host's without its seeds; fit() leaves the best in the module: call "
                "trainer.test(module) without ckpt_path"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put slots into the module."""
        _refuse(trainer, pl_module)
        assert trainer.strategy.model is not None
        grower = Grower(
            trainer.strategy.model,
            trainer.optimizers[0],
            val=_Validation(trainer, self.val),
            choices=self._choices(trainer, pl_module),
            policy=self.policy,
            run_dir=self.run_dir,
        )
        grower.goes_on_by(lambda: goes_on_from(_newest(trainer), "trainer.fit(..., ckpt_path={!r})"))
        if self._state:
            grower.load_state_dict(self._state)
            self._state = {}
        with ExitStack() as stack:
            with trainer.precision_plugin.train_step_context():
                stack.enter_context(grower)
            stack.enter_context(_observed(trainer, pl_module, grower))
            self.grower, self._open = grower, stack.pop_all()
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin the epoch before its first step: Lightning makes the step inside of ``optimizer.step``.

        One whose last step was saved before it was judged is judged now: a fit that goes on from there begins the next.
        Where validations do not divide the Trainer's epoch, one of growth goes on over its end.
        """
        if batch_idx == 0 and _divides(trainer):
            self._end_epoch()
        if self.grower is not None:
            self.grower.begin_epoch()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Teach the seeds behind the host."""
        if self.grower is not None:
            self.grower.after_backward()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge before checkpoints are written."""
        if self._training and (_within(trainer) > 1 or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch):
            self._end_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, where that has not been done."""
        if _within(trainer) == 1:
            self._end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Deliver the best that was validated."""
        self._training = False
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Deliver the best so far."""
        self._training = False
        self._unmarking.close()
        try:
            self._open.pop_all().__exit__(type(exception), exception, exception.__traceback__)
        except RankLost as lost:
            # Lightning ends what it has begun, and raises its own
            exception.args = (f"{lost}\n{exception}",) if lost.__cause__ is exception else lost.args

    def state_dict(self) -> dict[str, Any]:
        """Seeds, and all it takes to go on exactly."""
        return self.grower.state_dict() if self.grower is not None and self._training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo of :meth:`state_dict`, done when training starts."""
        self._state = state_dict

    # --------------------------------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        if self.grower is not None and self.grower.under_way:
            with torch.inference_mode(False), torch.enable_grad():
                self.grower.after_epoch()

    def _choices(self, trainer: Trainer, module: LightningModule) -> OwnChoices:
        budget = replace(self.choices.budget, epochs=_epochs(trainer))
        return replace(self.choices, budget=budget, device=str(module.device))


def _without_mark(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    state.pop(prefix + WITHOUT_SEEDS, None)


def _refuse(trainer: Trainer, module: LightningModule) -> None:
    """Raise ``UsageError`` for what cannot be grown under this Trainer."""
    strategy = trainer.strategy
    require_known(trainer.world_size, "the Trainer")
    if type(strategy) is not DDPStrategy and not isinstance(strategy, SingleDeviceStrategy):
        raise UsageError(
            f"the Trainer's strategy is {type(strategy).__name__}; a module grows on one device, or in several"
            " processes by Trainer(strategy='ddp')"
        )
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        raise UsageError(
            f"the Trainer's processes are started by {strategy._start_method}, and the grown module would stay in them;"
            " legal: strategy='ddp', or torchrun"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise UsageError(
            "training_step takes a dataloader_iter, and a step is made again on the same batch; let it take the batch"
        )
    if len(trainer.optimizers) != 1:
        raise UsageError(
            f"configure_optimizers() gives {len(trainer.optimizers)} optimizers; a module grows with one, in which "
            "seeds get groups of their own"
        )


def _newest(trainer: Trainer) -> Path | None:
    """The newest checkpoint that the Trainer's callbacks have written."""
    saving = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    told = [p for each in saving for p in (each.last_model_path, each.best_model_path, *each.best_k_models)]
    there = [path for path in map(Path, filter(None, told)) if path.exists()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def _within(trainer: Trainer) -> int:
    """Validations in one epoch of the Trainer; 1 also where there are fewer."""
    batches, every = trainer.num_training_batches, trainer.val_check_batch
    return max(1, int(batches // every)) if every is not None and math.isfinite(batches / every) else 1


def _divides(trainer: Trainer) -> bool:
    """Whether the last batch of the Trainer's epoch ends one of growth."""
    within = _within(trainer)
    return within == 1 or float(trainer.num_training_batches) % float(trainer.val_check_batch or 1) == 0


def _epochs(trainer: Trainer) -> int:
    """Most epochs that will be begun, each of them ended by a validation but for one behind the last."""
    behind = 0 if _divides(trainer) else 1
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return trainer.max_epochs * _within(trainer) + behind
    steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    if trainer.max_steps < 1 or not math.isfinite(steps):
        raise UsageError("the Trainer has no last epoch, and growth is planned with it: Trainer(max_epochs=...)")
    return math.ceil(trainer.max_steps / math.ceil(steps)) * _within(trainer) + behind


class _Validation:
    """A loader's batches as the Trainer gives them to ``validation_step``."""

    def __init__(self, trainer: Trainer, own: Iterable[Any] | None) -> None:
        """``own``: a loader that is not the Trainer's. Raises ``UsageError`` where there is none, or more than one."""
        self.trainer, self.limit = trainer, None
        loader = own
        if own is None:
            if trainer.val_dataloaders is None:
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loader = trainer.val_dataloaders
            loader = loader[0] if isinstance(loader, list) and len(loader) == 1 else loader
            loader, shares = undivided(loader)
            self.limit = trainer.num_val_batches[0] * shares if trainer.num_val_batches else None
        if loader is None or isinstance(loader, list | dict):
            several = f"{len(loader)} validation loaders" if loader else "no validation loader"
            raise UsageError(f"the Trainer has {several}, and growth is judged on one: GrowCallback(val=loader)")
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        trainer, stage = self.trainer, self.trainer.state.stage
        limit = None if self.limit is None or math.isinf(self.limit) else int(self.limit)
        try:
            trainer.validating = True  # what a module does to batches may depend on it
            for batch in islice(self.loader, limit):
                yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        finally:
            trainer.state.stage = stage


class _Monitored:
    """How validation calls the module: by ``validation_step``. The output holds what that logs as ``monitor``."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def __call__(self, module: nn.Module, batch: Any) -> dict[str, Tensor]:
        """``{"loss": tensor of one number}``. Raises ``UsageError`` where nothing of the name is logged as a number."""
        assert isinstance(module, LightningModule)
        logged: dict[str, Any] = {}
        step = module.validation_step
        numbered = len(inspect.signature(step).parameters) > 1
        with _muted(module, logged):
            step(*((batch, 0) if numbered else (batch,)))
        value = logged.get(self.monitor)
        if value is None:
            told = ", ".join(sorted(logged)) or "nothing"
            raise UsageError(
                f"validation_step logs {told}, and growth is judged by {self.monitor!r}: GrowCallback(monitor=...) "
                "names another"
            )
        if isinstance(value, Metric):
            raise UsageError(
                f"{self.monitor!r} is logged as an object that reduces over the split ({type(value).__name__}); "
                "growth is judged by a loss that validation_step logs: GrowCallback(monitor=...)"
            )
        return {"loss": torch.as_tensor(value, dtype=torch.float32)}


@contextmanager
def _muted(module: LightningModule, logged: dict[str, Any] | None = None) -> Iterator[None]:
    """Within, a step of the module leaves its metrics and attributes as they were, and logs into ``logged`` alone.

    In validation, which is shared out to ranks by the batch, it does not ask the other ranks.
    """
    into = {} if logged is None else logged

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        into[name] = value

    def log_dict(values: Any, *args: Any, **kwargs: Any) -> None:
        into.update(values.items())

    metrics = [each for each in module.modules() if isinstance(each, Metric)]
    trainer = module._trainer
    with ExitStack() as stack:
        if trainer is not None and trainer.loggers:
            stack.callback(setattr, trainer, "loggers", trainer.loggers)
            trainer.loggers = [DummyLogger()]
        stack.enter_context(attributes_kept([module, *metrics]))
        vars(module).update(log=log, log_dict=log_dict)
        if trainer is not None and trainer.world_size > 1 and logged is not None:
            vars(module).update(all_gather=_gathering)
        yield


def _gathering(*args: Any, **kwargs: Any) -> Any:
    raise UsageError(
        "validation_step calls all_gather, and ranks validate growth on other batches, not as many each; log what it"
        " gathers elsewhere (on_validation_epoch_end)"
    )


class _LossFound(Exception):
    """A step that is made again has come to its loss, behind which its backward pass begins."""

    def __init__(self, loss: Tensor) -> None:
        super().__init__()
        self.loss = loss


class _Idle:
    """Stands in for optimizers and schedulers while a step with manual optimization is made again."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        pass


_OPTIMIZING: Final = ("optimizers", "lr_schedulers", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")
"""What a module has for manual optimization."""


@contextmanager
def _idle(module: LightningModule) -> Iterator[None]:
    """Within, a step with manual optimization leaves no trace in the module, its optimizer and its gradients."""
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    with _muted(module):
        vars(module).update(dict.fromkeys(_OPTIMIZING, _Idle()))
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def _observed(trainer: Trainer, module: LightningModule, grower: Grower) -> Iterator[None]:
    """Within, the training steps that the Trainer makes teach the seeds behind the host."""
    steps = _Steps(trainer, module, grower)
    with ExitStack() as stack:
        if isinstance(trainer.strategy, DDPStrategy):  # gradients are averaged by the grower
            for name in ("pre_backward", "post_backward"):
                stack.enter_context(attribute(trainer.strategy, name, _nothing))
        if module.automatic_optimization:
            stack.enter_context(attribute(trainer.strategy, "training_step", steps.automatic))
        else:
            stack.enter_context(attribute(trainer.strategy, "training_step", steps.manual))
            stack.enter_context(attribute(trainer.strategy, "backward", steps.backward))
            stack.callback(trainer.optimizers[0].register_step_pre_hook(steps.stepping).remove)
        yield


class _Steps:
    """Stands before the strategy's ``training_step``, and its ``backward`` where the module calls that itself."""

    def __init__(self, trainer: Trainer, module: LightningModule, grower: Grower) -> None:
        self.trainer, self.module, self.grower = trainer, module, grower
        self._backward = trainer.strategy.backward
        self._taken: Callable[[Tensor], Tensor] | None = None
        self._backwards, self._stepped = 0, False

    def _step(self, batch: Any, *args: Any) -> Any:
        """The module's own, past whatever the strategy has wrapped it in."""
        with self.trainer.precision_plugin.train_step_context():
            return self.module.training_step(batch, *args)

    def automatic(self, batch: Any, *args: Any) -> Any:
        """A step that gives its loss."""
        step = ObservedStep(lambda again: _loss_of(self._step(again, *args)), batch, partial(_muted, self.module))
        with self._observing(step) as taken:
            output = self._step(batch, *args)
            loss = _loss_of(output)
            if loss is None:  # the step is left out
                return output
            loss = taken(loss)
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def manual(self, batch: Any, *args: Any) -> Any:
        """A step that sends its loss backward."""
        step = ObservedStep(lambda again: self._until_backward(again, *args), batch, partial(_idle, self.module))
        self._backwards, self._stepped = 0, False
        with self._observing(step) as self._taken:
            try:
                output = self._step(batch, *args)
            finally:
                self._taken = None
        if self._stepped and not self._backwards:
            raise UsageError(
                "training_step steps the optimizer without self.manual_backward(loss), by which seeds hear of the loss;"
                " call it in place of loss.backward()"
            )
        return output

    def stepping(self, *arguments: Any) -> None:
        """The optimizer is about to step."""
        self._stepped = True

    def backward(self, loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """``manual_backward`` of the module. Raises ``UsageError`` for the second in a step, and outside of one."""
        self._backwards += 1
        if self._taken is None:
            raise UsageError("manual_backward was called outside of training_step, which is made again for seeds")
        if self._backwards > 1:
            raise UsageError(
                "training_step calls manual_backward more than once, and a step is made again for seeds up to one;"
                " add the losses up, or train in a loop of your own with esper.Grower"
            )
        return self._backward(self._taken(loss), optimizer, *args, **kwargs)

    @contextmanager
    def _observing(self, step: ObservedStep) -> Iterator[Callable[[Tensor], Tensor]]:
        with (
            self.trainer.precision_plugin.train_step_context(),
            self.grower.observing(step, examples_in(step.batch)) as taken,
        ):
            yield taken

    def _until_backward(self, batch: Any, *args: Any) -> Tensor:
        with attribute(self.trainer.strategy, "backward", _found):
            try:
                self._step(batch, *args)
            except _LossFound as found:
                return found.loss
        raise UsageError("training_step did not call manual_backward when it was made again on the same batch")


def _nothing(*args: Any) -> None:
    pass


def _found(loss: Tensor, *args: Any, **kwargs: Any) -> None:
    raise _LossFound(loss)


def _loss_of(output: Any) -> Any:
    """The loss in what ``training_step`` gives; ``None`` where the step is left out."""
    return output["loss"] if isinstance(output, Mapping) else output
