"""Lightning as its users have it: a module, a Trainer, and ``GrowCallback`` among its callbacks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kit import EPOCHS, TRAIN, VALIDATION, Killed, Script, Told, Way, budget, optimizer_of, plain, warm_up
from torch import Tensor
from torch.utils.data import DataLoader

from own_loop import LOSS, narrow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of names of torch and of the operating system that Lightning still uses
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    from esper.stacks.lightning import WITHOUT_SEEDS, GrowCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(LightningModule):
    """As a user writes it; ``told`` is what the test wants to know."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net, self.way, self.told = narrow(), way, Told()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = LOSS(self(batch[0]), batch[1])
        self.seen.append(batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", LOSS(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self)
        self.told.watch(optimizer)
        if not self.way.scheduled:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up(optimizer), "interval": "step"}}


class Manual(Module):
    """The same, with optimization of its own."""

    def __init__(self, way: Way) -> None:
        super().__init__(way)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        if batch_idx % self.way.micro == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / self.way.micro)
        if (batch_idx + 1) % self.way.micro == 0:
            optimizer.step()
            if self.way.scheduled:
                self.lr_schedulers().step()


class Named(Module):
    """Gives its loss in a dictionary."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}


class KillAfter(Callback):
    """Ends training after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.steps:
            raise Killed


class Positioned:
    """A training loader that knows where it is, which Lightning asks of one that goes on in mid-epoch."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.position % len(TRAIN), len(TRAIN)):
            self.position = number + 1
            yield TRAIN[number]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position % len(TRAIN)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@dataclass(frozen=True)
class Lightning:
    """One way to train under Lightning."""

    way: Way = Way()
    kind: type[Module] = Module
    every: tuple[str, int] = ("every_n_epochs", 1)
    """When checkpoints are written."""
    stopping: bool = False
    """Whether training ends by ``EarlyStopping``."""

    def plain(self, where: Path) -> Told:
        return plain(where, self.way, epochs=EPOCHS - 1 if self.stopping else EPOCHS)

    def whole(self, where: Path) -> Told:
        return self.fitted(where).told

    def cut(self, where: Path) -> tuple[Path, int]:
        """Train until killed; the newest checkpoint, and the steps that it has seen."""
        try:
            self.fitted(where, [self.saving(where), KillAfter(11 // self.way.micro)])
        except Killed:
            newest = max((where / "checkpoints").iterdir(), key=lambda path: int(path.stem.split("step=")[1]))
            return newest, int(newest.stem.split("step=")[1])
        raise AssertionError("it was not killed")

    def resumed(self, where: Path, checkpoint: Path) -> Told:
        return self.fitted(where, [self.saving(where)], checkpoint).told

    def saving(self, where: Path) -> ModelCheckpoint:
        return ModelCheckpoint(where / "checkpoints", save_top_k=-1, **dict([self.every]))

    def read(self, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
        """Weights and optimizer as the checkpoint has them, and whether seeds are in it."""
        saved = torch.load(checkpoint, weights_only=True)
        saved["state_dict"].pop(WITHOUT_SEEDS, None)
        return saved["state_dict"], saved["optimizer_states"][0], bool(saved["callbacks"]["GrowCallback"])

    def fresh(self) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        module = Module(self.way)
        return module, optimizer_of(module)

    def fitted(self, where: Path, callbacks: Sequence[Callback] = (), checkpoint: Path | None = None) -> Module:
        """The module after ``fit``."""
        module = self.kind(self.way)
        self.fit(where, module, callbacks, checkpoint)
        return module

    def fit(
        self, where: Path, module: Module, callbacks: Sequence[Callback] = (), checkpoint: Path | None = None
    ) -> None:
        """Grow the module."""
        growth = GrowCallback({"site": "net.1"}, budget(), policy=Script(), run_dir=where / "lightning")
        stopping = [EarlyStopping("val_loss", min_delta=100.0, patience=EPOCHS - 2)] if self.stopping else []
        trainer = self.trainer(where, growth, *stopping, *callbacks)
        trainer.fit(module, Positioned(), DataLoader(VALIDATION, batch_size=None), ckpt_path=checkpoint)
        assert growth.result.epoch >= 1

    def trainer(self, where: Path, *callbacks: Callback, **how: Any) -> Trainer:
        """As a user makes it."""
        return Trainer(
            **how,
            max_epochs=EPOCHS,
            accelerator="cpu",
            precision="bf16-mixed" if self.way.bf16 else "32-true",
            accumulate_grad_batches=self.way.micro if self.kind is not Manual else 1,
            gradient_clip_val=self.way.clip,
            val_check_interval=self.way.rounds or 1.0,
            callbacks=list(callbacks),
            enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
            default_root_dir=where,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
