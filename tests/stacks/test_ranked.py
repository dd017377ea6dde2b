"""Growth under frameworks that train in several processes: what one process comes to with the same batches."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import TRAIN, VALIDATION, Killed, Script, Told, Way, as_launched, budget, plain
from lightning_runs import Callback, GrowCallback, KillAfter, Lightning, Manual, Module
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from transformers_runs import Counting, HuggingFace, TrainerCallback
from transformers_runs import KillAfter as TrainerKillAfter

from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from esper.nissa.reader import read_journal
from esper.stacks.common import require_known, undivided
from esper.stacks.lightning import DDPStrategy, _refuse
from esper.tolaria.ranks import RankLost
from ranks import on_ranks

pytestmark = [
    pytest.mark.usefixtures("without_figures"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),  # Lightning's use of torch's trees
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]
RANKS = 2


def whole(batches: list[Any]) -> TensorDataset:
    return TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True)))


def shared(rank: int) -> DataLoader[Any]:
    """A rank's share, such that all shares of a batch are the batch of one process."""
    data = whole(TRAIN)
    return DataLoader(data, batch_size=len(TRAIN[0][1]) // RANKS, sampler=DistributedSampler(data, RANKS, rank, False))


def came_to(told: Told, model: nn.Module, view: Any, run_dir: Path) -> dict[str, Any]:
    return {
        "told": told,
        "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "view": (view.metric, view.loss, [(slot.stage, slot.alpha) for slot in view.slots]),
        "run_dir": run_dir,
    }


def require_one_model(found: list[Any], plainly: Told, **near: float) -> None:
    """All ranks came to the same bit for bit, and to what a plain loop comes to."""
    assert isinstance(found[0], dict), found[0]
    for other in found:
        assert isinstance(other, dict), other
        torch.testing.assert_close(other["told"].weights, found[0]["told"].weights, rtol=0.0, atol=0.0)
        torch.testing.assert_close(other["model"], found[0]["model"], rtol=0.0, atol=0.0)
        assert other["view"] == found[0]["view"] and other["run_dir"] == found[0]["run_dir"]
    told = found[0]["told"]
    assert len(told.gradients[-1]) > 6 and any(bool(each.any()) for each in told.gradients[-1][6:]), "a seed learns"
    assert len(told.weights) == len(plainly.weights)
    for name in ("rates", "weights"):
        torch.testing.assert_close(
            getattr(told, name), getattr(plainly, name), **(near or {"rtol": 1e-4, "atol": 1e-5})
        )
    assert {event.env_id for event in read_journal(found[0]["run_dir"]) if event.env_id is not None} == {0}


def fit(where: Path, rank: int, stack: Lightning, *callbacks: Any, last: Path | None = None, **how: Any) -> Any:
    as_launched(RANKS)
    module = stack.kind(stack.way)
    growth = GrowCallback({"site": "net.1"}, budget(), policy=Script(), run_dir=where / "run")
    trainer = stack.trainer(where, growth, *callbacks, **({"strategy": "ddp", "devices": RANKS} | how))
    # batches of validation that no number of ranks shares out evenly
    trainer.fit(module, shared(rank), DataLoader(whole(VALIDATION), batch_size=9), ckpt_path=last)
    assert growth.grower is not None
    return came_to(module.told, module.net, growth.grower.view, growth.result.run_dir)


LIGHTNING = {
    "lightning": Lightning(Way(micro=2, clip=0.05, scheduled=True)),
    "lightning, manual": Lightning(Way(scheduled=True), Manual),
}


@pytest.mark.parametrize("name", ["lightning", pytest.param("lightning, manual", marks=pytest.mark.slow)])
def test_lightning_in_two_processes(name: str, tmp_path: Path) -> None:
    stack = LIGHTNING[name]
    found = on_ranks(RANKS, tmp_path / "ranks", lambda rank: fit(tmp_path, rank, stack), joined=False)
    require_one_model(found, plain(tmp_path, stack.way))


def train(where: Path, rank: int, stack: HuggingFace, *callbacks: Any, last: Path | None = None) -> Any:
    as_launched(RANKS)
    told, trainer, growth = stack.trained(where, callbacks, last)
    assert growth.grower is not None and trainer.args.world_size == RANKS
    return came_to(told, trainer.model.net, growth.grower.view, growth.result.run_dir)


TRAINER = {
    "trainer": HuggingFace(Way(micro=2, clip=0.05, scheduled=True), share=RANKS),
    "trainer, items counted": HuggingFace(Way(micro=2, scheduled=True), Counting, share=RANKS),
}


@pytest.mark.parametrize("name", ["trainer, items counted", pytest.param("trainer", marks=pytest.mark.slow)])
def test_trainer_in_two_processes(name: str, tmp_path: Path) -> None:
    stack = TRAINER[name]
    found = on_ranks(RANKS, tmp_path / "ranks", lambda rank: train(tmp_path, rank, stack), joined=False)
    require_one_model(found, plain(tmp_path, stack.way))


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def killed_and_gone_on(where: Path, run: Callable[..., Any], killer: Any, folder: Path, way: Way) -> None:
    killed = on_ranks(RANKS, where / "a", lambda rank: run(rank, killer), joined=False)
    assert [type(each) for each in killed] == [Killed] * RANKS, killed
    last = newest(folder)
    on = on_ranks(RANKS, where / "b", lambda rank: run(rank, last=last), joined=False)
    assert isinstance(on[0], dict), on[0]
    plainly, steps = plain(where, way), len(on[0]["told"].weights)
    assert 0 < steps < len(plainly.weights) and len(on[0]["told"].gradients[0]) > len(plainly.gradients[0])
    for part in ("rates", "weights"):
        getattr(plainly, part)[:] = getattr(plainly, part)[-steps:]
    require_one_model(on, plainly)


@pytest.mark.slow
def test_lightning_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    stack = Lightning(Way(clip=0.05, scheduled=True))

    def run(rank: int, *more: Any, last: Path | None = None) -> Any:
        return fit(tmp_path, rank, stack, *more, stack.saving(tmp_path), last=last)

    killed_and_gone_on(tmp_path, run, KillAfter(11), tmp_path / "checkpoints", stack.way)


@pytest.mark.slow
def test_trainer_goes_on_from_its_own_checkpoint_in_mid_epoch(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    stack = replace(TRAINER["trainer, items counted"], options=options)

    def run(rank: int, *more: Any, last: Path | None = None) -> Any:
        return train(tmp_path, rank, stack, *more, last=last)

    killed_and_gone_on(tmp_path, run, TrainerKillAfter(5), tmp_path / "trainer", stack.way)


class DieInLightning(Callback):
    """The last rank is killed in validation, when a checkpoint is there."""

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step > len(TRAIN) and trainer.global_rank == RANKS - 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DieInTrainer(TrainerCallback):
    """The last rank is killed while the others evaluate, when a checkpoint is there."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > len(TRAIN) // 2 and args.process_index == RANKS - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def one_line(lost: list[Any], kind: type[Exception], capfd: pytest.CaptureFixture[str]) -> str:
    """What a person is told where the last rank was killed: at once, and as the error."""
    error, victim = lost
    assert type(error) is kind and victim is None, lost
    assert f"\nesper: {error}\n" in capfd.readouterr().err
    told = re.fullmatch(
        r"rank 0 of 2 has lost rank 1, whose process \d+ is gone \(.*\); nothing that was written is lost: "
        r"trainer\.(?:fit|train)\((?:\.\.\., ckpt_path|resume_from_checkpoint)='(.*)'\) goes on, on as many ranks or "
        "others",
        str(error),
    )
    assert told is not None, error
    return told[1]


@pytest.mark.slow
def test_a_rank_that_lightning_misses_is_named_and_one_process_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stack = Lightning(Way(clip=0.05, scheduled=True))

    def run(rank: int) -> Any:
        return fit(tmp_path, rank, stack, DieInLightning(), stack.saving(tmp_path))

    lost = on_ranks(RANKS, tmp_path / "a", run, joined=False)
    last = Path(one_line(lost, RuntimeError, capfd))
    assert last == newest(tmp_path / "checkpoints")
    ended = [event.data for event in read_journal(tmp_path / "run") if event.event_type is T.TRAINING_ENDED]
    assert [data["status"] for data in ended] == ["failed"] and "RankLost: rank 0 of 2" in ended[0]["reason"]
    module = stack.kind(stack.way)
    growth = GrowCallback({"site": "net.1"}, budget(), policy=Script(), run_dir=tmp_path / "run")
    loaders = DataLoader(whole(TRAIN), batch_size=16), DataLoader(whole(VALIDATION), batch_size=9)
    stack.trainer(tmp_path, growth, stack.saving(tmp_path)).fit(module, *loaders, ckpt_path=last)
    require_gone_on(module.told, plain(tmp_path, stack.way))


@pytest.mark.slow
def test_a_rank_that_the_trainer_misses_is_named_and_one_process_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "epoch"}
    stack = replace(TRAINER["trainer, items counted"], options=options)
    lost = on_ranks(RANKS, tmp_path / "a", lambda rank: train(tmp_path, rank, stack, DieInTrainer()), joined=False)
    last = Path(one_line(lost, RankLost, capfd))
    assert last == max((tmp_path / "trainer").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    told, _, _ = replace(stack, share=1).trained(tmp_path, checkpoint=last)
    require_gone_on(told, plain(tmp_path, stack.way))


def require_gone_on(told: Told, whole: Told) -> None:
    """The last steps of the whole run."""
    steps = len(told.weights)
    assert 0 < steps < len(whole.weights) and any(bool(each.any()) for each in told.gradients[-1][6:]), "a seed learns"
    for part in ("rates", "weights"):
        torch.testing.assert_close(getattr(told, part), getattr(whole, part)[-steps:], rtol=1e-4, atol=1e-5)


class Gathering(Module):
    """Asks the other ranks in validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.all_gather(batch[0])


class Backwards(DistributedSampler[Any]):
    """Shares examples out in an order of its own."""


def refused(ask: Callable[[], Any]) -> str:
    with pytest.raises(UsageError) as told:
        ask()
    return str(told.value)


def mistakes(where: Path, rank: int) -> dict[str, str]:
    plainly = Lightning()
    odd = DataLoader(whole(VALIDATION), batch_size=9, sampler=Backwards(whole(VALIDATION), RANKS, rank))
    return {
        "alone": refused(lambda: require_known(1, "the trainer")),
        "gathering": refused(lambda: fit(where, rank, Lightning(kind=Gathering))),
        "sampler": refused(lambda: undivided(odd)),
        "fork": refused(lambda: _refuse(plainly.trainer(where, strategy="ddp_fork", devices=RANKS), Module(Way()))),
        "strategy": refused(lambda: _refuse(plainly.trainer(where, strategy=Tied(), devices=RANKS), Module(Way()))),
    }


class Tied(DDPStrategy):
    """One that does more."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather")
def test_what_cannot_be_had_in_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zero, one = on_ranks(RANKS, tmp_path / "ranks", lambda rank: mistakes(tmp_path, rank), joined=False)
    assert isinstance(zero, dict) and zero == one, zero
    assert zero["gathering"].startswith("validation_step calls all_gather, and ranks validate growth on other batches")
    assert zero["sampler"].startswith("validation is shared out to ranks by a Backwards, and growth is judged by all")
    assert "started by fork, and the grown module would stay in them; legal: strategy='ddp'" in zero["fork"]
    told = "the trainer knows of 1 process, and 2 were started to train together (torchrun); legal: as many, or a start"
    assert zero["alone"].startswith(told)
    assert zero["strategy"].startswith("the Trainer's strategy is Tied; a module grows on one device, or in several")
