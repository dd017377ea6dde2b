"""Hugging Face's Trainer as its users have it, and ``GrowCallback``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from kit import EPOCHS, TRAIN, VALIDATION, Killed, Script, Told, Way, budget, optimizer_of, plain, warm_up
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler

from own_loop import LOSS, narrow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from esper.stacks.transformers import GROWTH, GrowCallback


class Model(nn.Module):
    """Computes its own loss, as the Trainer wants it; over the items of all accumulated batches where it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.net = narrow()

    def forward(self, x: Tensor, labels: Tensor | None = None, num_items_in_batch: Any = None) -> dict[str, Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        loss = LOSS(logits, labels)
        return {"loss": loss if num_items_in_batch is None else loss * len(x) / num_items_in_batch, "logits": logits}


class Counting(Model):
    """Says that it takes what ``num_items_in_batch`` is."""

    accepts_loss_kwargs = True


class Examples(Dataset[dict[str, Tensor]]):
    """A split, example by example."""

    def __init__(self, batches: list[Any]) -> None:
        self.x, self.y = (torch.cat(part) for part in zip(*batches, strict=True))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"x": self.x[number], "labels": self.y[number]}


class InOrder(Trainer):
    """Without shuffling, so that a plain loop sees the same batches. Notes and logs in its loss, as users do."""

    seen = 0

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            self.seen += 1
            self.log({"seen": self.seen})
        return super().compute_loss(model, inputs, *args, **kwargs)


class KillAfter(TrainerCallback):
    """Ends training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise Killed


@dataclass(frozen=True)
class HuggingFace:
    """One way to train under the Trainer."""

    way: Way = Way()
    kind: type[Model] = Model
    linear: bool = False
    """Whether the schedule is the Trainer's own, which falls linearly to 0."""
    options: dict[str, Any] = field(default_factory=lambda: {"save_strategy": "epoch"})
    share: int = 1
    """Processes that share a batch out; validation has then as many batches as cannot be."""

    def plain(self, where: Path) -> Told:
        def fall(optimizer: torch.optim.Optimizer) -> LambdaLR:
            steps = EPOCHS * len(TRAIN) // self.way.micro
            return LambdaLR(optimizer, lambda step: max(0.0, float(steps - step) / float(max(1, steps))))

        return plain(where, self.way, schedule=fall if self.linear else None)

    def whole(self, where: Path) -> Told:
        return self.trained(where)[0]

    def cut(self, where: Path) -> tuple[Path, int]:
        """Train until killed; the newest checkpoint, and the steps that it has seen."""
        try:
            self.trained(where, [KillAfter(11 // self.way.micro)])
        except Killed:
            newest = max((where / "trainer").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            return newest, int(newest.name.split("-")[1])
        raise AssertionError("it was not killed")

    def resumed(self, where: Path, checkpoint: Path) -> Told:
        return self.trained(where, checkpoint=checkpoint)[0]

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Weights and optimizer as the checkpoint has them, and whether seeds are in it."""
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        return load_file(checkpoint / "model.safetensors"), optimizer, (checkpoint / GROWTH).exists()

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Model()
        return model, optimizer_of(model)

    def trained(
        self, where: Path, callbacks: Sequence[TrainerCallback] = (), checkpoint: Path | None = None
    ) -> tuple[Told, Trainer, GrowCallback]:
        """What the optimizer saw, after ``train``."""
        model, told = self.kind(), Told()
        trainer = self.trainer(where, model, callbacks=callbacks)
        told.watch(trainer.optimizer)
        growth = GrowCallback(trainer, {"site": "net.1"}, budget(), policy=Script(), run_dir=where / "growth")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return told, trainer, growth

    def trainer(
        self, where: Path, model: nn.Module, kind: type[Trainer] = InOrder, callbacks: Sequence[TrainerCallback] = ()
    ) -> Trainer:
        """As a user makes it."""
        way, optimizer = self.way, optimizer_of(model)
        given = warm_up(optimizer) if way.scheduled else None if self.linear else LambdaLR(optimizer, lambda step: 1.0)
        usual = {
            "output_dir": str(where / "trainer"),
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": len(TRAIN[0][1]) // self.share,
            "per_device_eval_batch_size": len(TRAIN[0][1]) if self.share == 1 else 9,
            "gradient_accumulation_steps": way.micro,
            "max_grad_norm": way.clip or 0.0,
            "bf16": way.bf16,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "logging_strategy": "no",
        }
        return kind(
            model,
            TrainingArguments(**(usual | self.options)),
            train_dataset=Examples(TRAIN),
            eval_dataset=Examples(VALIDATION),
            optimizers=(optimizer, given),
            callbacks=list(callbacks),
        )
