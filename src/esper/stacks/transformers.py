"""Growth under Hugging Face's ``Trainer``::

trainer = Trainer(model, args, train_dataset=train, eval_dataset=validation)
growth = GrowCallback(trainer)
trainer.train()
grown = growth.result.model
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.leyline import MissingExtraError, Policy, UsageError
from esper.library import Budget, Grower, GrowResult, OwnChoices
from esper.stacks.common import attribute, examples_in, goes_on_from, require_known, undivided
from esper.tamiyo.policies.learned import SHIPPED
from esper.tasks.metrics import MetricChoice
from esper.tolaria.observed import ObservedStep, attributes_kept

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, get_last_checkpoint
except ImportError as error:
    raise MissingExtraError("esper.stacks.transformers", "transformers") from error

GROWTH: Final = "growth.pt"
"""File of a checkpoint that holds seeds, and all it takes to go on exactly."""


class GrowCallback(TrainerCallback):
    """Grows the model of ``trainer`` in its next ``train()``; neither is changed for it. Adds itself to the trainer.

    ``at`` and ``budget`` are those of :class:`esper.library.OwnChoices`. An epoch of growth ends with the trainer's
    own, or with each evaluation where ``eval_strategy`` is ``"steps"``; ``Budget.epochs`` is how many of these there
    will be, whatever the budget says. Validation is what ``trainer.evaluate()`` does: its loss, and
    ``metric`` of the model's logits and labels, over ``eval_dataset``, or ``val``, a loader of its own.

    The training loss is what ``compute_loss`` gives, share of accumulated batches and all. For a seed that learns
    behind the host it is called a second time, on the same batch and the same chance; what it logs then, and what it
    notes on the trainer, is left alone.

    A checkpoint holds the host's weights as ever, and the rest in ``growth.pt``; ``resume_from_checkpoint`` goes on
    exactly. After ``train()`` the trainer's model is the best that was validated, with its seeds, and :attr:`result`
    has a plain copy. That is ``load_best_model_at_end``, too: checkpoints, which lack seeds, are not loaded for it.
    """

    def __init__(
        self,
        trainer: Trainer,
        at: str | Sequence[str] | Mapping[str, str] = "auto",
        budget: Budget | None = None,
        *,
        metric: MetricChoice = "loss",
        val: Iterable[Any] | None = None,
        policy: str | Policy = SHIPPED,
        run_dir: str | Path | None = None,
    ) -> None:
        self.trainer, self.val, self.policy, self.run_dir = trainer, val, policy, run_dir
        self.choices = OwnChoices(metric=metric, at=at, budget=budget or Budget(), forward=self._evaluated)
        self.grower: Grower | None = None
        """Once training has started."""
        self._by_steps = False
        self._open = ExitStack()
        self._from: Path | None = None
        self._leave = ExitStack()
        self._leave.enter_context(attribute(trainer, "train", _Train(self, trainer.train)))
        self._leave.callback(trainer.remove_callback, self)
        trainer.add_callback(self)

    @property
    def result(self) -> GrowResult:
        """The plain model and the evidence. Raises ``UsageError`` before ``train()`` has ended."""
        if self.grower is None:
            raise UsageError("the grown model is there when trainer.train() has ended")
        return self.grower.result

    # --- what Trainer calls ---------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put slots into the model."""
        self._refuse(args)
        self._by_steps = args.eval_strategy == IntervalStrategy.STEPS
        rounds = math.ceil(state.max_steps / state.eval_steps) if self._by_steps else state.num_train_epochs
        trainer, budget = self.trainer, replace(self.choices.budget, epochs=rounds)
        assert trainer.optimizer is not None and trainer.model is not None
        grower = Grower(
            trainer.model_wrapped,
            trainer.optimizer,
            val=_whole_of_validation(trainer) if self.val is None else self.val,
            choices=replace(self.choices, budget=budget, device=str(args.device)),
            policy=self.policy,
            run_dir=self.run_dir,
        )
        if self._from is not None:
            grower.load_state_dict(torch.load(self._from / GROWTH, weights_only=True, map_location="cpu"))
        grower.goes_on_by(lambda: goes_on_from(_newest(args), "trainer.train(resume_from_checkpoint={!r})"))
        with ExitStack() as stack:
            self.grower = stack.enter_context(grower)
            stack.enter_context(_observed(trainer, grower))
            self._open = stack.pop_all()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge an epoch whose last step was saved before it was: a trainer that goes on from there begins the next.

        Where growth is judged by steps that is done before they are saved, and its epochs go on over the trainer's.
        """
        ended = float(state.epoch or 0.0).is_integer() and not self._by_steps
        if self.grower is not None and self.grower.under_way and ended:
            self.grower.after_epoch()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Validate and judge, before the trainer evaluates and saves."""
        if self.grower is not None and self.grower.under_way and not self._by_steps:
            self.grower.after_epoch()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The same, where the trainer is about to evaluate in the midst of its epoch."""
        if self.grower is not None and self.grower.under_way and self._by_steps and control.should_evaluate:
            self.grower.after_epoch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Deliver the best that was validated."""
        self._open.close()

    # --------------------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self, checkpoint: str | bool | None) -> Iterator[None]:
        """Within, the trainer trains, on from ``checkpoint`` if there is one. Delivers the best so far on errors."""
        folder = str(self.trainer.args.output_dir)
        found = get_last_checkpoint(folder) if checkpoint is True else checkpoint  # type: ignore[no-untyped-call]
        self._from = Path(found) if found else None
        if self._from is not None and not (self._from / GROWTH).exists():
            raise UsageError(
                f"{self._from} has no {GROWTH}, so that nothing is known of its seeds; give a checkpoint that was "
                "written while a GrowCallback was there"
            )
        with self._leave:
            try:
                yield
            except BaseException as error:
                self._open.pop_all().__exit__(type(error), error, error.__traceback__)
                raise

    def _evaluated(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        """``{"loss", "logits"}`` of a batch, as ``trainer.evaluate()`` computes them, without asking other ranks."""
        with attribute(self.trainer.args, "average_tokens_across_devices", False):
            loss, logits, _ = self.trainer.prediction_step(model, batch, prediction_loss_only=False)
        if loss is None:
            raise UsageError(
                f"the model gives no loss for a batch of {', '.join(map(str, batch))}, and growth is judged by it; "
                "name its labels: TrainingArguments(label_names=[...])"
            )
        return {"loss": loss, "logits": logits}

    def _refuse(self, args: TrainingArguments) -> None:
        """Raise ``UsageError`` for what cannot be grown under this trainer."""
        trainer = self.trainer
        require_known(args.world_size, "the trainer")
        if args.n_gpu > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise UsageError(
                f"the trainer has {args.n_gpu} devices in one process, or DeepSpeed or FSDP; a model grows on one"
                " device a process, without: start it with torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        if args.auto_find_batch_size or args.torch_compile:
            odd = "auto_find_batch_size" if args.auto_find_batch_size else "torch_compile"
            raise UsageError(f"TrainingArguments({odd}=True) cannot be had while the model grows; leave it out")
        named = self.choices.metric if isinstance(self.choices.metric, str) else ""
        if named == "accuracy" and type(trainer.model).__name__ in _SHIFTING:
            raise UsageError(
                f"{type(trainer.model).__name__} shifts its labels by one token, and metric='accuracy' does not; legal "
                "are metric='loss' and a Scored of your own"
            )
        best = (args.metric_for_best_model or "loss").removeprefix("eval_")
        if args.load_best_model_at_end and named == "loss" and best != "loss":
            raise UsageError(
                f"load_best_model_at_end goes by {best!r}, and growth delivers the best by the loss: give "
                f"GrowCallback(metric=...) what {best!r} is, or TrainingArguments(metric_for_best_model='loss')"
            )


def _newest(args: TrainingArguments) -> Path | None:
    """The newest checkpoint from which growth goes on; the trainer's state is what is written last into one."""
    found = Path(str(args.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    whole = [path for path in found if (path / GROWTH).exists() and (path / TRAINER_STATE_NAME).exists()]
    return max(whole, key=lambda path: path.stat().st_mtime_ns, default=None)


def _whole_of_validation(trainer: Trainer) -> Any:
    """The trainer's own loader; with several ranks all of what it would share out to them."""
    if trainer.args.world_size == 1:
        return trainer.get_eval_dataloader()
    with (
        attribute(trainer.accelerator, "prepare", _as_it_is),
        attribute(trainer.args, "dataloader_persistent_workers", False),  # by which the trainer keeps loaders
    ):
        return undivided(trainer.get_eval_dataloader())[0]


def _as_it_is(loader: Any) -> Any:
    return loader


_SHIFTING: Final = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


class _Train:
    """Stands before ``trainer.train``: nothing else tells a callback how training ends, and from where it goes on."""

    def __init__(self, callback: GrowCallback, train: Any) -> None:
        self.callback, self.train = callback, train

    def __call__(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        with self.callback.training(resume_from_checkpoint):
            return self.train(resume_from_checkpoint, *args, **kwargs)


@contextmanager
def _observed(trainer: Trainer, grower: Grower) -> Iterator[None]:
    """Within, the trainer's steps teach the seeds behind the host, and what it saves has them."""
    steps = _Steps(trainer, grower)
    with ExitStack() as stack:
        for name in ("compute_loss", "training_step", "save_model", "_load_best_model"):
            stack.enter_context(attribute(trainer, name, getattr(steps, name)))
        yield


class _Steps:
    """Stands before methods of the trainer."""

    def __init__(self, trainer: Trainer, grower: Grower) -> None:
        self.trainer, self.grower = trainer, grower
        self._compute_loss, self._training_step = trainer.compute_loss, trainer.training_step
        self._save_model = trainer.save_model
        self._lossless = True

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch; in training it teaches seeds, too."""
        if not torch.is_grad_enabled():
            return self._compute_loss(model, inputs, *args, **kwargs)
        step = ObservedStep(
            lambda again: _first(self._compute_loss(model, again, *args, **kwargs)), inputs, self._quiet
        )
        with self.grower.observing(step, examples_in(inputs), self._times(kwargs.get("num_items_in_batch"))) as taken:
            output = self._compute_loss(model, inputs, *args, **kwargs)
            loss = taken(_first(output))
        self._lossless = False
        return (loss, *output[1:]) if isinstance(output, tuple) else loss

    def _times(self, items: Any) -> float:
        """A loss that is over the items of all accumulated batches is a share of its batch's own."""
        trainer = self.trainer
        scaled = trainer.loss_is_scaled_for_ga
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None
        return float(trainer.current_gradient_accumulation_steps) if scaled else 1.0

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with attributes_kept([self.trainer, self.trainer.model]), attribute(self.trainer, "log", _nothing):
            yield

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward of a batch; clipping, which comes later, reaches the seeds' gradients."""
        self._lossless = True
        loss = self._training_step(*args, **kwargs)
        if self._lossless:
            raise UsageError(
                f"{type(self.trainer).__name__}.training_step does not take its loss from compute_loss, which is what "
                "teaches seeds; train in a loop of your own with esper.Grower"
            )
        self.grower.after_backward()
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The host's weights as ever, and ``growth.pt``."""
        self._save_model(output_dir, _internal_call)
        state = self.grower.state_dict()  # of all ranks
        if self.trainer.args.should_save:
            path = Path(output_dir or str(self.trainer.args.output_dir)) / GROWTH
            torch.save(state, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    def _load_best_model(self) -> None:
        """Nothing: the best is delivered with its seeds, which the checkpoint's weights lack."""


def _first(output: Any) -> Tensor:
    loss: Tensor = output[0] if isinstance(output, tuple) else output
    return loss


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
