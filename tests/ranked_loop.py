"""A user's loop on several ranks, and on one with the same batches; what it came to, to be compared."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from histories import without_clock
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import esper
from esper.leyline import Blend, Decision, EnvView, FactoredAction, GateThresholds, Op
from esper.leyline import TelemetryEventType as T
from esper.library import Budget, Grower, OwnChoices
from esper.nissa.reader import read_journal
from esper.tamiyo.policies.base import EnvPolicy
from esper.tolaria.ranks import Together
from own_loop import LOSS, TRAIN, narrow, products

VALIDATION = [products(n, seed) for n, seed in ((100, 10), (100, 11), (37, 12), (19, 13), (60, 14))]
"""Batches that no number of ranks shares out evenly."""

GATES = GateThresholds(
    min_training_epochs=1,
    min_gradient_ratio=0.0,
    min_gradient_health=0.0,
    min_holding_epochs=1,
    min_removal_cost=0.0,
    confidence_z=0.0,
    ask_for_gain=False,
)


class Moves(EnvPolicy):
    """Acts after so many epochs, whatever is seen."""

    name = "moves"

    def __init__(self, moves: Mapping[int, FactoredAction]) -> None:
        self.moves = dict(moves)

    def decide_env(self, env: int, view: EnvView) -> Decision:
        return Decision(self.moves.get(view.epoch, FactoredAction()), "as told")


def germinate(slot: str, blueprint: str = "mlp") -> FactoredAction:
    return FactoredAction(Op.GERMINATE, slot, blueprint, Blend.LINEAR, alpha_target=1.0, tempo=2)


LIFE = {
    1: germinate("1"),
    2: germinate("3", "bottleneck"),
    4: FactoredAction(Op.ADVANCE, "1"),
    5: FactoredAction(Op.PRUNE, "3"),
    8: FactoredAction(Op.FOSSILIZE, "1"),
}
"""One seed is kept, one is pruned; by the epochs after which it is done."""


def halves(batch: tuple[Tensor, Tensor], rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """A rank's share of a batch."""
    x, y = batch
    return x[rank::ranks], y[rank::ranks]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank has a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def saving_after(epoch: int, path: Path) -> Callable[[int, Grower], None]:
    """For ``Ranked.at_epoch``: rank 0 writes down the state after an epoch. All ranks are asked for it after each."""

    def save(now: int, grower: Grower) -> None:
        state = grower.state_dict()
        if now == epoch and Together().rank == 0:
            torch.save(state, path)

    return save


def saving_at(epoch: int, step: int, path: Path) -> Callable[[int, int, Grower], None]:
    """For ``Ranked.at_step``: rank 0 writes down the state in the middle of an epoch."""

    def save(epoch_now: int, step_now: int, grower: Grower) -> None:
        if (epoch_now, step_now) == (epoch, step):
            state = grower.state_dict()
            if Together().rank == 0:
                torch.save(state, path)

    return save


def going_on(path: Path, first: int) -> Callable[[Grower], int]:
    """For ``Ranked.begin``: the state in the file is gone on from, and ``first`` is the epoch to begin with."""

    def load(grower: Grower) -> int:
        grower.load_state_dict(torch.load(path))
        return first

    return load


@dataclass
class Ranked:
    """How the loop is run."""

    policy: Callable[[], Any] = lambda: Moves(LIFE)
    epochs: int = 10
    micro: int = 1
    model: Callable[[], nn.Module] = narrow
    metric: Any = "accuracy"
    train: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: TRAIN)
    gates: GateThresholds = GATES
    at_epoch: Callable[[int, Grower], None] = lambda epoch, grower: None
    """Called after each epoch."""
    at_step: Callable[[int, int, Grower], None] = lambda epoch, step, grower: None
    """Called after each step of the optimizer."""
    skip: int = 0
    """Batches of the first epoch that were trained before."""
    begin: Callable[[Grower], int] = lambda grower: 0
    """Called before the block; gives the first epoch."""
    spoilt: int | None = None
    """The epoch in which one rank's batches are beyond all bounds."""
    at: Any = ("1", "3")
    choices: dict[str, Any] = field(default_factory=dict)

    def run(self, where: Path, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
        """What it came to on one rank."""
        model = self.model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        budget = Budget(epochs=self.epochs, parameters=5000, gates=self.gates)
        choices = OwnChoices(LOSS, metric=self.metric, at=list(self.at), budget=budget, device="cpu", **self.choices)
        seen: list[Any] = []
        losses: list[float] = []
        grower = Grower(model, optimizer, val=VALIDATION, choices=choices, policy=self.policy(), run_dir=where / "run")
        first = self.begin(grower)
        with grower:
            for epoch in range(first, self.epochs):
                for step, batch in enumerate(self.train):
                    if epoch == first and step < self.skip:
                        continue
                    optimizer.zero_grad()
                    for number in range(self.micro):
                        x, y = halves(halves(batch, number, self.micro), rank, ranks)
                        x = x * 1e30 if epoch == self.spoilt and rank == ranks - 1 else x
                        loss = grower.loss(x, y) / self.micro
                        torch.autograd.backward(loss)
                        grower.after_backward()
                    optimizer.step()
                    self.at_step(epoch, step, grower)
                report = grower.after_epoch()
                seen.append(report.view)
                losses.append(report.train.loss)
                self.at_epoch(epoch, grower)
        weights = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
        return {
            "views": seen,
            "losses": losses,
            "weights": weights,
            "delivered": grower.result.epoch,
            "plain": {name: tensor.clone() for name, tensor in grower.result.model.state_dict().items()},
            "run_dir": grower.result.run_dir,
        }


class Dying:
    """A loss with which one rank is killed, or told to stop, or does something else, in mid-epoch."""

    def __init__(self, at: int | None, by: int | Callable[[], None]) -> None:
        self.left, self.by = at, by

    def __call__(self, output: Any, targets: Any) -> Any:
        if self.left is not None and torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.by) if isinstance(self.by, int) else self.by()
        return LOSS(output, targets)


def grown(
    where: Path,
    rank: int,
    ranks: int,
    die_at: int | None = None,
    resume: bool = False,
    by: Any = signal.SIGKILL,
    make: Callable[[], nn.Module] = narrow,
) -> Any:
    """``esper.grow`` over 8 epochs of 4 batches, each rank with its share of the examples."""
    data = TensorDataset(*products(128, 0))
    sampler = DistributedSampler(data, ranks, rank, seed=3)
    train = DataLoader(data, batch_size=32 // ranks, sampler=sampler)
    budget = Budget(epochs=10, parameters=5000, gates=GATES, checkpoint_every=1)
    model = make()
    torch.manual_seed(rank)
    result = esper.grow(
        model, train=train, val=VALIDATION, loss=Dying(die_at, by), at=["1", "3"], policy=Moves(LIFE), budget=budget,
        device="cpu", resume=where if resume else None, run_dir=None if resume else where,
    )  # fmt: skip
    state = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    return {"model": state, "epoch": result.epoch, "run_dir": result.run_dir, "samples": sampler.epoch}


def committed(run: Path) -> list[tuple[Any, ...]]:
    """What a run came to, by the journal: all that it says of epochs and of ends of seeds, but for times."""
    told = [e for e in read_journal(run) if e.event_type in (T.EPOCH_COMPLETED, T.SEED_FOSSILIZED, T.SEED_PRUNED)]
    epochs = [e.data.keys() for e in told if e.event_type is T.EPOCH_COMPLETED]
    assert epochs and all({"validation_loss", "validation_metric"} <= keys for keys in epochs)
    return [(e.event_type.name, e.epoch, e.slot_id, e.seed_id, repr(without_clock(e.data))) for e in told]
