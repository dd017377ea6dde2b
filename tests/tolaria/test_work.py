"""What is booked of a training step is what runs in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from users import plant, trainer_of

from esper.kasmina.macs import counting
from esper.leyline import SeedStage
from esper.tolaria.trainer import Trainer

N = 8


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x))[0][:, -1])


class FeedsBack(nn.Module):
    """The site's output reaches what is in front of it in the next turn: work in front of it cannot be shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.site, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.site(torch.relu(self.first(x)))
        return self.head(y + torch.relu(self.first(y)))


def flat() -> Tensor:
    return torch.randn(N, 6)


def pictures() -> Tensor:
    return torch.randn(N, 3, 8, 8)


def series() -> Tensor:
    return torch.randn(N, 5, 6)


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], str, tuple[str, ...]]
HOSTS: dict[str, Case] = {
    "mlp": (mlp, flat, "2", ()),
    "mlp, frozen in front": (mlp, flat, "2", ("0",)),
    "mlp, frozen but for its head": (mlp, flat, "2", ("0", "2")),
    "mlp, frozen behind": (mlp, flat, "2", ("4",)),
    "mlp, wholly frozen": (mlp, flat, "2", ("",)),
    "convolutions": (convolutions, pictures, "1", ()),
    "convolutions, frozen but for their head": (convolutions, pictures, "1", ("0", "1", "2")),
    "attention": (Attention, series, "layers.0", ()),
    "attention, frozen but for its head": (Attention, series, "layers.0", ("embed", "layers")),
    "recurrent": (Recurrent, series, "embed", ()),
    "a loop through the site": (FeedsBack, flat, "site", ()),
}


def executed(trainer: Trainer, x: Tensor, y: Tensor) -> dict[str, int]:
    """MACs of one step, by purpose."""
    found = {}
    with counting() as counter:
        loss = trainer.loss(x, y)
        found["train_forward"] = counter.total
        torch.autograd.backward(loss)
        found["train_backward"] = counter.total - found["train_forward"]
        trainer.after_backward()
    found["probe"] = counter.total - sum(found.values())
    return found


def booked(trainer: Trainer) -> dict[str, int]:
    spent = trainer.ledger.spent()
    return {name: spent[f"{name}_macs"] for name in ("train_forward", "train_backward", "probe")}


@pytest.mark.parametrize("stage", [None, SeedStage.TRAINING, SeedStage.BLENDING], ids=["alone", "behind", "blended"])
@pytest.mark.parametrize("name", HOSTS)
def test_booked_is_what_runs(name: str, stage: SeedStage | None) -> None:
    make, data, site, frozen = HOSTS[name]
    torch.manual_seed(0)
    host, x, y = make(), data(), torch.arange(N) % 4
    for path in frozen:
        host.get_submodule(path).requires_grad_(False)
    trainer = trainer_of(host, (x, y), site=site)
    if stage is not None:
        blueprint = "conv3" if "convolutions" in name else "mlp"
        plant(trainer, stage, 0.5 if stage is SeedStage.BLENDING else 0.0, blueprint)
    trainer.begin_epoch(0)
    runs = executed(trainer, x, y)
    trainer.end_epoch()
    assert booked(trainer) == runs
    assert (runs["probe"] > 0) == (stage is SeedStage.TRAINING)
    if stage is SeedStage.BLENDING:
        assert 0 < sum(trainer.ledger.of_seed.values()) < runs["train_forward"] + runs["train_backward"]


def test_what_is_frozen_later_is_counted_anew() -> None:
    torch.manual_seed(0)
    x, y = flat(), torch.arange(N) % 4
    trainer = trainer_of(mlp(), (x, y), site="2")
    for _ in range(2):
        before = booked(trainer)
        trainer.begin_epoch(0)
        runs = executed(trainer, x, y)
        trainer.end_epoch()
        assert {purpose: macs - before[purpose] for purpose, macs in booked(trainer).items()} == runs
        trainer.model.host.get_submodule("0").requires_grad_(False)


def test_a_figure_without_a_gradient_is_taken_for_a_whole_backward_pass() -> None:
    """As where a training framework's validation step logs a plain number."""

    def number(model: nn.Module, inputs: Any) -> Tensor:
        output: Tensor = model(inputs)
        return output if model.training else output.detach()

    torch.manual_seed(0)
    x, y = flat(), torch.arange(N) % 4
    trainer = trainer_of(mlp(), (x, y), site="2", forward=number)
    trainer.begin_epoch(0)
    runs = executed(trainer, x, y)
    trainer.end_epoch()
    assert booked(trainer)["train_backward"] == 2 * runs["train_forward"]
