"""A run of ``grow`` or ``Grower`` that was cut and goes on equals the one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import CallCounter, Cut, Ended, in_child
from histories import bits, history, model_files
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper.kasmina.applied import apply
from esper.leyline import (
    Blend,
    DataError,
    EnvView,
    FactoredAction,
    GateThresholds,
    Op,
    SeedStage,
    TelemetryEventType,
    UsageError,
)
from esper.library import Budget, Grower, OwnChoices, grow
from esper.nissa.reader import read_journal
from four_classes import SHORT, KeepOne, loader
from own_loop import products

pytestmark = pytest.mark.usefixtures("without_figures")

EPOCHS = 12
LOSS = nn.CrossEntropyLoss()


class Remembering(KeepOne):
    """A policy that can be saved; it counts what it was asked, and tells."""

    def __init__(self) -> None:
        self.asked = 0

    def decide(self, views: list[Any]) -> list[Any]:
        self.asked += 1
        return super().decide(views)

    def state(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def model() -> nn.Module:
    """With buffers, with chance of its own, and with weights that are drawn anew each time."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 4)
    )


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*products(256, 0)), 64, shuffle=True)  # in an order from torch's global generator


@dataclass(frozen=True)
class UsersLoop:
    """A training script of a user's: it saves itself every so many batches, and goes on if it finds what it saved."""

    folder: Path
    every: int = 4
    budget: Budget = Budget(epochs=EPOCHS, parameters=5000)
    policy: type = Remembering
    make: Callable[[], nn.Module] = model
    site: str = "1"

    def __call__(self) -> int:
        saved = self.folder / "saved.pt"
        torch.manual_seed(3)
        network = self.make()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
        choices = OwnChoices(LOSS, at=[self.site], budget=self.budget)
        grower = Grower(
            network,
            optimizer,
            val=loader(128, 1),
            choices=choices,
            policy=self.policy(),
            run_dir=self.folder / "run",
        )
        done, order = 0, []
        if saved.exists():
            found = torch.load(saved, weights_only=True)
            grower.load_state_dict(found["growth"])
            scheduler.load_state_dict(found["scheduler"])
            scaler.load_state_dict(found["scaler"])
            done, order = found["done"], found["order"]
        with grower:
            for epoch in range(grower.view.epoch, EPOCHS):
                order = order or torch.randperm(256).tolist()
                while len(order) > done * 64:
                    rows = order[done * 64 : done * 64 + 64]
                    inputs, targets = (part[rows] for part in products(256, 0))
                    optimizer.zero_grad()
                    torch.autograd.backward(scaler.scale(grower.loss(inputs, targets)))
                    grower.after_backward()
                    scaler.step(optimizer)
                    scaler.update()
                    scheduler.step()
                    done += 1
                    if (epoch * 4 + done) % self.every == 0 and done < 4:
                        self.save(saved, grower, scheduler, scaler, done, order)
                grower.after_epoch()
                done, order = 0, []
                if (epoch * 4 + 4) % self.every == 0:
                    self.save(saved, grower, scheduler, scaler, done, order)
        torch.save(grower.result.model.state_dict(), self.folder / "end.pt")
        return 0

    def save(self, path: Path, grower: Grower, scheduler: Any, scaler: Any, done: int, order: list[int]) -> None:
        what = {"growth": grower.state_dict(), "scheduler": scheduler.state_dict(), "scaler": scaler.state_dict()}
        torch.save({**what, "done": done, "order": order}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def run(self, cut: Cut | None = None) -> Ended:
        """In a forked child, cut at ``cut``."""
        import sys

        def work() -> int:
            if cut is not None:
                sys.setprofile(CallCounter(cut))
            return self()

        self.folder.mkdir(exist_ok=True)
        return in_child(work, self.folder / "log")


def assert_same_runs(one: Path, other: Path) -> None:
    mine, theirs = history(one / "run"), history(other / "run")
    for pair in zip(mine, theirs, strict=False):
        assert pair[0] == pair[1], pair
    assert len(mine) == len(theirs)
    assert model_files(one / "run") == model_files(other / "run")
    ours, whole = (torch.load(folder / "end.pt", weights_only=True) for folder in (one, other))
    assert {name: bits(each) for name, each in ours.items()} == {name: bits(each) for name, each in whole.items()}


def assert_same(one: Path, other: Path) -> None:
    assert_same_runs(one, other)
    states = [torch.load(folder / "saved.pt", weights_only=True) for folder in (one, other)]
    tensors = [{name: bits(each) for name, each in state["growth"]["tensors"].items()} for state in states]
    assert tensors[0] == tensors[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch._dynamo  # noqa: F401 - so that children find it imported

    folder = tmp_path_factory.mktemp("whole")
    ended = UsersLoop(folder, every=1).run()
    assert ended.status == 0, ended.said
    return folder


def killed(folder: Path, every: int, *cuts: Cut) -> Path:
    """The loop, killed at each of ``cuts`` and started again each time."""
    loop = UsersLoop(folder, every)
    for cut in cuts:
        assert (ended := loop.run(cut)).status == -9, ended.said
    assert (ended := UsersLoop(folder, every=1).run()).status == 0, ended.said
    return folder


def test_killed_in_mid_epoch_and_saved_in_mid_epoch_while_a_seed_is_blended(whole: Path, tmp_path: Path) -> None:
    told = [event.event_type.name for event in read_journal(whole / "run")]
    assert "SEED_FOSSILIZED" in told, "the whole run keeps a seed, or there is nothing to see here"
    folder = killed(tmp_path / "one", 3, Cut(23, function="trainer.after_backward"))
    assert torch.load(folder / "saved.pt", weights_only=True)["growth"]["version"] == 1
    assert_same(folder, whole)
    assert len(list((folder / "run").glob("events-*.jsonl"))) == 2


def copying() -> nn.Module:
    """Two blocks of one kind, with chance of their own."""

    def block() -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.GELU())

    return nn.Sequential(nn.Linear(6, 8), block(), block(), nn.Linear(8, 4))


class KeepCopy(Remembering):
    """Copies a block."""

    def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
        copy = FactoredAction(Op.GERMINATE, slot, "clone", Blend.LINEAR, 1.0, 1)
        return super().actions(view, slot) | {SeedStage.DORMANT: copy}


def test_killed_while_a_copy_of_a_block_learns(tmp_path: Path) -> None:
    import torch._dynamo

    gates = GateThresholds(min_training_epochs=0, min_holding_epochs=0, ask_for_gain=False)
    budget = Budget(epochs=EPOCHS, parameters=5000, blueprints=("clone",), gates=gates)
    loops = [UsersLoop(tmp_path / name, 3, budget, KeepCopy, copying, "1") for name in ("whole", "cut")]
    assert (ended := loops[0].run()).status == 0, ended.said
    kept = [event for event in read_journal(tmp_path / "whole" / "run") if event.event_type.name == "SEED_FOSSILIZED"]
    assert kept, "the whole run keeps a copy, or there is nothing to see here"
    for cut in (Cut(9, function="trainer.after_backward"), Cut(17, function="trainer.after_backward")):
        assert loops[1].run(cut).status == -9
    assert (ended := loops[1].run()).status == 0, ended.said
    assert_same_runs(tmp_path / "cut", tmp_path / "whole")
    fresh = apply(copying(), tmp_path / "cut" / "run")
    end = torch.load(tmp_path / "whole" / "end.pt", weights_only=True)
    assert {name: bits(each) for name, each in fresh.state_dict().items()} == {
        name: bits(each) for name, each in end.items()
    }
    assert any("seed.block" in name for name in end)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_killed_anywhere(number: int, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(number)
    cuts = [Cut(draw.randrange(1, 40), function="trainer.after_backward") for _ in range(1 + number % 2)]
    cuts.append(Cut(draw.randrange(2_000, 30_000)))
    folder = tmp_path / "one"
    loop = UsersLoop(folder, draw.randrange(1, 6))
    for cut in cuts:
        assert loop.run(cut).status in (-9, 0)
    assert (ended := UsersLoop(folder, every=1).run()).status == 0, ended.said
    assert_same(folder, whole)


def test_a_loop_that_forgets_a_little_is_another(whole: Path, tmp_path: Path) -> None:
    """The comparison would notice."""
    folder = tmp_path / "one"
    assert UsersLoop(folder, 3).run(Cut(23, function="trainer.after_backward")).status == -9
    found = torch.load(folder / "saved.pt", weights_only=True)
    found["growth"]["tensors"]["run/epoch/total"].add_(1e-3)  # what the epoch under way has summed up
    torch.save(found, folder / "saved.pt")
    assert (ended := UsersLoop(folder, every=1).run()).status == 0, ended.said
    with pytest.raises(AssertionError):
        assert_same(folder, whole)


def started(tmp_path: Path, **budget: Any) -> Grower:
    network = model()
    choices = OwnChoices(LOSS, at=["1"], budget=Budget(**{"epochs": 3, "parameters": 5000, "gates": SHORT, **budget}))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    return Grower(
        network, optimizer, val=loader(128, 1), choices=choices, policy=Remembering(), run_dir=tmp_path / "run"
    )


def one_epoch(grower: Grower) -> None:
    for inputs, targets in loader(128, 0):
        torch.autograd.backward(grower.loss(inputs, targets))
        grower.after_backward()
    grower.after_epoch()


def test_what_differs_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path) as grower:
        one_epoch(grower)
        state = grower.state_dict()
        with pytest.raises(UsageError, match="comes before the with block"):
            grower.load_state_dict(state)
        grower.loss(*next(iter(loader(64, 0))))
        with pytest.raises(UsageError, match="between loss"):
            grower.state_dict()
        grower.after_epoch()
    with pytest.raises(UsageError, match="comes before the with block"):
        grower.load_state_dict(state)
    with pytest.raises(UsageError, match="inside the with block"):
        grower.state_dict()
    for changed, message in (
        (started(tmp_path, epochs=4), "its Budget.epochs is 3, here it is 4"),
        (started(tmp_path / "elsewhere"), "not a run directory"),
    ):
        with pytest.raises((UsageError, DataError), match=message):
            changed.load_state_dict(state)
    with pytest.raises(DataError, match="no state of a Grower"):
        started(tmp_path).load_state_dict({"model": 1})
    again, about = started(tmp_path), json.loads(state["about"])
    about["environment"] |= {"gpu": "NVIDIA H100", "cudnn": 91002}
    again.load_state_dict(state | {"about": json.dumps(about)})
    with again as grower:
        assert grower.view.epoch == 1
    (loaded,) = [e for e in read_journal(tmp_path / "run") if e.event_type is TelemetryEventType.CHECKPOINT_LOADED]
    assert loaded.data["exact"] is False and loaded.severity == "warning", "it goes on, and is not called exact"
    assert [told.partition(", here")[0] for told in loaded.data["differences"]] == [
        "cudnn: saved with 91002", "gpu: saved with NVIDIA H100"
    ]  # fmt: skip


@dataclass(frozen=True)
class Grow:
    """``grow`` in a script of a user's."""

    folder: Path
    resume: bool = False

    def __call__(self) -> int:
        torch.manual_seed(3)
        where: dict[str, Any] = {"resume" if self.resume else "run_dir": self.folder / "run"}
        result = grow(
            model(),
            train=batches(),
            val=loader(128, 1),
            loss=LOSS,
            at=["1"],
            policy=Remembering(),
            budget=Budget(epochs=EPOCHS, parameters=5000, lr=1e-2, checkpoint_every=2),
            **where,
        )
        torch.save(result.model.state_dict(), self.folder / "end.pt")
        return 0

    def run(self, cut: Cut | None = None) -> Ended:
        import sys

        def work() -> int:
            if cut is not None:
                sys.setprofile(CallCounter(cut))
            return self()

        self.folder.mkdir(exist_ok=True)
        return in_child(work, self.folder / "log")


def test_grow_that_was_killed_goes_on(tmp_path: Path) -> None:
    import torch._dynamo  # noqa: F401

    assert (ended := Grow(tmp_path / "whole").run()).status == 0, ended.said
    assert Grow(tmp_path / "cut").run(Cut(23, function="trainer.after_backward")).status == -9
    right: dict[str, Any] = {
        "train": batches(),
        "val": loader(128, 1),
        "loss": LOSS,
        "at": ["1"],
        "policy": Remembering(),
    }
    right |= {"budget": Budget(epochs=EPOCHS, parameters=5000, lr=1e-2), "resume": tmp_path / "cut" / "run"}
    wider = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    for network, change, message in (
        (wider, {}, r"its model is .*Sequential of 180 parameters \(\w+\), here it is .*Sequential of 103 parameters"),
        (model(), {"val": loader(64, 1)}, "its examples is {'validation': 128}, here it is {'validation': 64}"),
        (model(), {"train": loader(64, 0)}, "its training batches is 4, here it is 1"),
        (
            model(),
            {"budget": Budget(epochs=EPOCHS + 1, parameters=5000, lr=1e-2)},
            "its Budget.epochs is 12, here it is 13",
        ),
        (model(), {"policy": "static"}, "its policy is keep-one, here it is static"),
        (model(), {"run_dir": tmp_path / "other"}, "a run goes on where it is"),
        (model(), {"resume": tmp_path / "nowhere"}, "not a run directory"),
    ):
        with pytest.raises((UsageError, DataError), match=message):
            grow(network, **{**right, **change})
    assert (ended := Grow(tmp_path / "cut", resume=True).run()).status == 0, ended.said
    assert_same_runs(tmp_path / "cut", tmp_path / "whole")
    ended = Grow(tmp_path / "cut", resume=True).run()
    assert ended.status == 99 and "the run is completed; there is nothing to resume" in ended.said
