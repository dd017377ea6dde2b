"""Hosts of many kinds, small enough for a quick test, and seeds that do something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.kasmina.growing import GrowingModel
from esper.leyline import SeedStage


class Residual(nn.Module):
    """A ResNet block with in-place activations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.2)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.drop(self.bn2(self.conv2(out)))
        out = out + x
        return self.relu2(out)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(Residual(4) for _ in range(3))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(F.dropout(x.mean((2, 3)), 0.1, self.training))


class Pointwise(nn.Module):
    """Three pointwise-convolution blocks with pools, as in the digits task."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [1, width, width, width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
                for i, o in zip(widths, widths[1:], strict=False)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).flatten(1))


class Branches(nn.Module):
    """A module used in front of and behind a slot, and a branch that joins late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.act = nn.GELU()
        self.middle = nn.Linear(8, 8)
        self.skip = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        skip = self.skip(x)
        x = self.act(self.middle(x))
        return self.last(self.act(x + skip))


class Writer(nn.Module):
    """Adds to what came before the slot, in place, after the slot: sharing is not possible there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        late = self.middle(torch.relu(early))
        early += late
        return self.last(early)


class Pair(NamedTuple):
    state: Tensor
    count: int


class Structured(nn.Module):
    """Blocks that take keywords and give tuples and dicts."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, *, scale: float = 1.0) -> Pair:
            return Pair(torch.tanh(self.linear(x)) * scale, 3)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.block = self.Block()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        pair = self.block(self.embed(x), scale=0.5)
        return {"logits": self.head(pair.state), "count": pair.count, "hidden": [pair.state]}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(tokens))
        return self.head(hidden)


class Odd(nn.Module):
    """One site of every kind that cannot carry a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.twice = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.written = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)
        self.sum = nn.Flatten(0)
        self.size = Size()
        self.table = Table()
        self.mixer = Mixer()
        self.widths = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.embed(x)))
        x = self.written(x)
        x += 1
        self.idle(x)
        x = x * self.size(x) + self.table(x).sum(1) + self.mixer(x[:, None]).squeeze(1)
        x = self.widths(x) + self.widths(x[:, :4]).repeat(1, 2)
        return self.sum(x)


class Size(nn.Module):
    def forward(self, x: Tensor) -> int:
        return x.shape[1]


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * 2


class Mixer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def encoder(batch_first: bool = True) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


@dataclass(frozen=True)
class Case:
    """A host, a batch for it, and sites."""

    build: Callable[[], nn.Module]
    sample: Callable[[], Any]
    sites: tuple[str, ...]


CASES = {
    "mlp": Case(mlp, lambda: torch.randn(5, 6), ("1", "3")),
    "conv1d": Case(conv1d, lambda: torch.randn(5, 1, 8), ("2", "4")),
    "pointwise": Case(Pointwise, lambda: torch.randn(5, 1, 8, 8), ("blocks.0", "blocks.1", "blocks.2")),
    "residual": Case(ResidualNet, lambda: torch.randn(5, 1, 8, 8), ("blocks.0", "blocks.1.conv1", "blocks.2")),
    "branches": Case(Branches, lambda: torch.randn(5, 6), ("first", "middle")),
    "writer": Case(Writer, lambda: torch.randn(5, 6), ("middle",)),
    "structured": Case(Structured, lambda: torch.randn(5, 6), ("embed", "block")),
    "recurrent": Case(Recurrent, lambda: torch.randint(0, 11, (5, 7)), ("embed", "lstm")),
    "encoder": Case(encoder, lambda: torch.randn(5, 7, 8), ("layers.0", "layers.1", "layers.2")),
}


def wrapped(name: str, seed: int = 0) -> tuple[GrowingModel, Any]:
    """The host of a case with empty slots, and its batch."""
    case = CASES[name]
    torch.manual_seed(seed)
    host, sample = case.build(), case.sample()
    return GrowingModel.wrap(host, case.sites, sample), sample


BLUEPRINT = {"NC": "mlp", "NCL": "conv3", "NCHW": "conv3", "NTC": "mlp"}


def grow(model: GrowingModel, stage: SeedStage = SeedStage.HOLDING, alpha: float = 0.6) -> None:
    """Put a seed with weights that matter into every slot."""
    for slot in model.slots.values():
        put_seed(model, slot.slot_id, stage, alpha)


def put_seed(model: GrowingModel, slot_id: str, stage: SeedStage, alpha: float = 0.0) -> None:
    """Germinate one slot and move it to ``stage`` without asking a gate."""
    slot = model.slots[slot_id]
    assert slot.germinate(BLUEPRINT[slot.config.layout]).passed
    assert slot.state is not None
    slot.state.stage, slot.state.alpha = stage, alpha
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
