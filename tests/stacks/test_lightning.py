"""Growth under Lightning's Trainer is growth in a plain loop."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from kit import EPOCHS, TRAIN, VALIDATION, Script, Told, Way, assert_equal, choices, optimizer_of, plain, warm_up
from torch import Tensor
from torch.utils.data import DataLoader

from own_loop import LOSS, narrow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of names of torch and of the operating system that Lightning still uses
    from lightning.pytorch import LightningModule, Trainer

    from esper.stacks.lightning import GrowCallback

pytestmark = [
    pytest.mark.usefixtures("without_figures"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(LightningModule):
    """As a user writes it; ``told`` is what the test wants to know."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net, self.way, self.told = narrow(), way, Told()
        self.seen: list[int] = []
        self.automatic_optimization = not isinstance(self, Manual)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = LOSS(self(batch[0]), batch[1])
        self.seen.append(batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", LOSS(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self)
        self.told.watch(optimizer)
        if not self.way.scheduled:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up(optimizer), "interval": "step"}}


class Manual(Module):
    """The same, with optimization of its own."""

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


def trainer_of(where: Path, way: Way, callback: GrowCallback, **options: Any) -> Trainer:
    plainly = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    plainly |= {"enable_checkpointing": False, "max_epochs": EPOCHS, "accelerator": "cpu"}
    if way.micro > 1:
        plainly["accumulate_grad_batches"] = way.micro
    plainly |= {"gradient_clip_val": way.clip, "precision": "bf16-mixed" if way.bf16 else "32-true"}
    return Trainer(**(plainly | {"default_root_dir": where, "callbacks": [callback]} | options))


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(TRAIN, batch_size=None), DataLoader(VALIDATION, batch_size=None)


def fitted(where: Path, way: Way, kind: type[Module] = Module, **options: Any) -> Module:
    module = kind(way)
    callback = GrowCallback(choices("net.1"), policy=Script(), run_dir=str(where / "lightning"))
    trainer_of(where, way, callback, **options).fit(module, *loaders())
    return module


WAYS = {
    "plain": Way(),
    "accumulated": Way(micro=2),
    "clipped": Way(clip=0.05),
    "bf16": Way(bf16=True),
    "LambdaLR by step": Way(scheduled=True),
    "all": Way(micro=2, clip=0.05, bf16=True, scheduled=True),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_gradients_are_those_of_a_plain_loop(way: Way, tmp_path: Path) -> None:
    module = fitted(tmp_path, way)
    assert_equal(module.told, plain(tmp_path, way))
    assert module.seen == list(range(len(TRAIN))) * EPOCHS, "a step made again is not counted"


@pytest.mark.parametrize("way", [Way(), Way(micro=2, scheduled=True)], ids=["plain", "accumulated, LambdaLR"])
def test_manual_optimization(way: Way, tmp_path: Path) -> None:
    once = Way(scheduled=way.scheduled)
    module = Manual(way)
    callback = GrowCallback(choices("net.1"), policy=Script(), run_dir=str(tmp_path / "lightning"))
    trainer_of(tmp_path, once, callback).fit(module, *loaders())
    assert_equal(module.told, plain(tmp_path, way))
    assert module.seen == list(range(len(TRAIN))) * EPOCHS


def test_a_loss_in_a_dictionary(tmp_path: Path) -> None:
    assert_equal(fitted(tmp_path, Way(), Named).told, plain(tmp_path, Way()))
