"""Growth under Lightning's Trainer is growth in a plain loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import (
    EPOCHS,
    TRAIN,
    VALIDATION,
    Script,
    Way,
    budget,
    check_checkpoint,
    check_gradients,
    check_resume,
    optimizer_of,
    quick,
)
from lightning_runs import GrowCallback, Lightning, Manual, Module, Named, Positioned
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from esper.leyline import UsageError
from own_loop import LOSS

pytestmark = [
    pytest.mark.usefixtures("without_figures"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's use of torch's trees
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),  # as it does when a fit goes on
]

STACKS = {
    "plain": Lightning(),
    "accumulated": Lightning(Way(micro=2)),
    "clipped": Lightning(Way(clip=0.05)),
    "bf16": Lightning(Way(bf16=True)),
    "LambdaLR by step": Lightning(Way(scheduled=True)),
    "loss in a dictionary": Lightning(kind=Named),
    "manual": Lightning(kind=Manual),
    "manual, accumulated, LambdaLR": Lightning(Way(micro=2, scheduled=True), Manual),
    "validated in mid-epoch": Lightning(Way(rounds=2)),
    "stopped early": Lightning(stopping=True),
    "all": Lightning(Way(micro=2, clip=0.05, bf16=True, scheduled=True)),
}


@pytest.mark.parametrize("stack", quick(STACKS, "all", "manual, accumulated, LambdaLR"))
def test_gradients_are_those_of_a_plain_loop(stack: Lightning, tmp_path: Path) -> None:
    check_gradients(stack, tmp_path)


@pytest.mark.slow
def test_a_step_that_is_made_again_leaves_the_module_alone(tmp_path: Path) -> None:
    for kind in (Lightning().kind, Manual):
        module = Lightning(kind=kind).fitted(tmp_path / kind.__name__)
        assert module.seen == list(range(len(TRAIN))) * EPOCHS


@pytest.mark.slow
def test_a_checkpoint_loads_without_esper_and_has_the_seeds_beside(tmp_path: Path) -> None:
    check_checkpoint(STACKS["all"], tmp_path)


def test_weights_that_lack_their_seeds_are_not_taken_for_the_whole(tmp_path: Path) -> None:
    """As by ``load_from_checkpoint(best_model_path)``: the figure in the file's name is that of host and seeds."""
    stack = Lightning(every=("every_n_epochs", 1))
    stack.fitted(tmp_path, [stack.saving(tmp_path)])
    refused = []
    for path in sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        saved = torch.load(path, weights_only=True)
        try:
            Module(Way()).load_state_dict(saved["state_dict"])
            refused.append(False)
        except RuntimeError as error:
            refused.append("lack the seeds that grew" in str(error))
    assert refused == sorted(refused) and not refused[0] and refused[-1], "from when a seed has a part in the output"


@pytest.mark.parametrize(
    "every", quick({"epochs": ("every_n_epochs", 1), "mid-epoch": ("every_n_train_steps", 2)}, "mid-epoch")
)
def test_a_fit_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(every: tuple[str, int], tmp_path: Path) -> None:
    check_resume(Lightning(Way(clip=0.05, scheduled=True), every=every), tmp_path)


def test_validations_that_do_not_divide_an_epoch_end_no_more_epochs_of_growth_than_there_are(tmp_path: Path) -> None:
    stack = Lightning(Way(rounds=2))
    growth = GrowCallback({"site": "net.1"}, budget(), policy=Script(), run_dir=tmp_path / "lightning")
    batches = DataLoader([*TRAIN, TRAIN[0]], batch_size=None)
    stack.trainer(tmp_path, growth).fit(Module(Way()), batches, DataLoader(VALIDATION, batch_size=None))
    assert growth.grower is not None
    assert growth.grower.view.epoch == EPOCHS * 2


# --- refused ----------------------------------------------------------------------------------------------------------


class Pair(Manual):
    """Two optimizers."""

    def configure_optimizers(self) -> Any:
        return [optimizer_of(self), optimizer_of(self)]


class Twice(Manual):
    """Two backward passes in a step."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for x, y in ((part[:8] for part in batch), (part[8:] for part in batch)):
            self.manual_backward(LOSS(self(x), y))


class Direct(Manual):
    """Goes backward without telling Lightning."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        torch.autograd.backward(LOSS(self(batch[0]), batch[1]))
        self.optimizers().step()


class Later(Manual):
    """Goes backward after its step."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.loss = LOSS(self(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss)


class Silent(Module):
    """Logs its validation loss by another name."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation", LOSS(self(batch[0]), batch[1]))


class Measured(Module):
    """Logs an object that reduces over the split."""

    def __init__(self, way: Way) -> None:
        super().__init__(way)
        self.mean = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mean.update(LOSS(self(batch[0]), batch[1]))
        self.log("val_loss", self.mean)


class Iterated(Module):
    """Takes its batches itself."""

    def training_step(self, dataloader_iter: Any) -> Any:
        return LOSS(self(next(dataloader_iter)[0]), next(dataloader_iter)[1])


REFUSED = {
    Pair: "configure_optimizers() gives 2 optimizers; a module grows with one",
    Twice: "training_step calls manual_backward more than once",
    Later: "manual_backward was called outside of training_step",
    Silent: "validation_step logs validation, and growth is judged by 'val_loss': GrowCallback(monitor=...)",
    Measured: "'val_loss' is logged as an object that reduces over the split (MeanMetric)",
    Iterated: "training_step takes a dataloader_iter",
}


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")  # Lightning calls it experimental
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_cannot_be_had_is_refused_before_a_step_is_made(kind: type[Module], tmp_path: Path) -> None:
    before = [p.clone() for p in kind(Way()).parameters()]
    module = kind(Way())
    with pytest.raises(UsageError, match=re.escape(REFUSED[kind])):
        Lightning().fit(tmp_path, module)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))


def test_a_backward_pass_that_lightning_does_not_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps the optimizer without self.manual_backward"):
        Lightning().fit(tmp_path, Direct(Way()))


@pytest.mark.slow
def test_a_checkpoint_is_not_loaded_for_a_test(tmp_path: Path) -> None:
    checkpoint, _ = Lightning().cut(tmp_path)
    module = Module(Way())
    trainer = Lightning().trainer(tmp_path, GrowCallback(), Lightning().saving(tmp_path))
    with pytest.raises(UsageError, match="are the host's without its seeds"):
        trainer.validate(module, Positioned(), ckpt_path=checkpoint)
