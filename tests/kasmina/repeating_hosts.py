"""Hosts with blocks that repeat, of the kinds that a copy has to be right for, and those that it is refused for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """Pre-norm, two residual branches; attention among what ``pad`` lets through and a scale; gives a tuple."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), nn.MultiheadAttention(channels, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 16), nn.GELU(), nn.Linear(16, channels))

    def forward(self, states: Tensor, pad: Tensor | None = None, *, scale: float = 1.0) -> tuple[Tensor, None]:
        x = self.norm(states)
        states = states + scale * self.attention(x, x, x, key_padding_mask=pad, need_weights=False)[0]
        return states + self.mlp(states), None


class Reader(nn.Module):
    """Three layers that are handed a mask and a keyword; time first inside if ``time_first``."""

    def __init__(self, layer: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layers = nn.ModuleList(layer() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h, pad, scale=0.5)[0]
        return self.head(h)


def padded() -> tuple[Tensor, Tensor]:
    """A batch of two; of the second the last three of seven positions are padding."""
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1))
    pad = torch.zeros(2, 7, dtype=torch.bool)
    pad[1, 4:] = True
    return x, pad


class Turning(nn.Module):
    """Turns time round and mixes channels: two of them keep positions apart, three do not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.linear(h.flip(1)))


class Two(nn.Module):
    """Gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return self.linear(h), h


class Memory(nn.Module):
    """Is handed its predecessor's output last, behind something of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, memory: Tensor, h: Tensor) -> Tensor:
        return h + self.linear(h) * memory


class Remembering(nn.Module):
    """Blocks that read a memory; ``between`` stands between them where given."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.blocks, self.between = nn.ModuleList(Memory() for _ in range(3)), between
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = h = self.embed(x)
        for block in self.blocks:
            h = block(memory * 2, h if self.between is None else self.between(h))
        return self.head(h)


class Caching(nn.Module):
    """Keeps what it has seen in an object that is handed to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor, past: Any = None) -> Tensor:
        return h + self.linear(h)


def chain(*blocks: nn.Module) -> nn.Sequential:
    """``[N, T, 6]`` to ``[N, T, 3]``."""
    return nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 3))
