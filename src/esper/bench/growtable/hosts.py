"""Hosts of GrowTable's worlds. A host is made from a :class:`Shape` and the number of its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Shape:
    """What all hosts of a world have in common."""

    dimensions: int
    """1 for lines, 2 for squares."""
    size: int
    """Positions a side."""
    channels: int
    depth: int
    """Layers in each of the host's three blocks."""

    def convolution(self, inputs: int, outputs: int, kernel: int = 1) -> nn.Module:
        """Of the shape's dimensions; positions stay as many."""
        return (nn.Conv1d, nn.Conv2d)[self.dimensions - 1](inputs, outputs, kernel, padding=kernel // 2)

    def pool(self, by: int) -> nn.Module:
        """Maximum over ``by`` positions a side."""
        return (nn.MaxPool1d, nn.MaxPool2d)[self.dimensions - 1](by)

    def block(self, inputs: int, kernel: int = 1) -> nn.Sequential:
        """``depth`` layers."""
        widths = [inputs, *[self.channels] * self.depth]
        pairs = zip(widths, widths[1:], strict=False)
        return nn.Sequential(*(part for a, b in pairs for part in (self.convolution(a, b, kernel), nn.GELU())))

    def head(self, pooled: int, blocks: int = 1) -> nn.Linear:
        """From ``blocks`` features at a ``pooled``-th of the positions a side to logits."""
        return nn.Linear(blocks * self.channels * (self.size // pooled) ** self.dimensions, 10)


class Stack(nn.Module):
    """Three blocks, one behind the other; their first layers have a kernel of ``kernel``. Max pools of 2 follow the
    first two. ``x [B, 1, *positions] -> logits [B, 10]``.
    """

    def __init__(self, shape: Shape, kernel: int = 1) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = (shape.block(n, kernel) for n in (1, shape.channels, shape.channels))
        self.pool = shape.pool(2)
        self.head = shape.head(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.pool(self.block0(x))
        h = self.pool(self.block1(h))
        logits: torch.Tensor = self.head(self.block2(h).flatten(1))
        return logits


def pointwise(shape: Shape, kind: int) -> nn.Module:
    """Pointwise convolutions, which cannot see shapes."""
    return Stack(shape)


def sighted(shape: Shape, kind: int) -> nn.Module:
    """Kind 0 cannot see shapes; kind 1 has kernels of 3."""
    return Stack(shape, (1, 3)[kind])


class Branches(nn.Module):
    """Three blocks side by side, each behind a channel of its own; the input itself goes to block ``informed``.

    ``x [B, 3, *positions] -> logits [B, 10]``.
    """

    def __init__(self, shape: Shape, informed: int) -> None:
        super().__init__()
        self.block0, self.block1, self.block2 = (shape.block(1) for _ in range(3))
        self.informed = informed
        self.pool = shape.pool(2)
        self.head = shape.head(2, blocks=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [
            self.pool(block(x[:, (i - self.informed) % 3, None]))
            for i, block in enumerate((self.block0, self.block1, self.block2))
        ]
        logits: torch.Tensor = self.head(torch.cat(features, dim=1).flatten(1))
        return logits


class Residual(nn.Module):
    """Three residual blocks at full resolution behind a stem, all with kernels of ``kernel``; what those in ``cut`` add
    counts a hundredth.

    ``x [B, 1, *positions] -> logits [B, 10]``.
    """

    def __init__(self, shape: Shape, cut: frozenset[int] = frozenset(), kernel: int = 1) -> None:
        super().__init__()
        self.stem = shape.convolution(1, shape.channels, kernel)
        self.block0, self.block1, self.block2 = (shape.block(shape.channels, kernel) for _ in range(3))
        self.gates = tuple(0.01 if i in cut else 1.0 for i in range(3))
        self.pool = shape.pool(2)
        self.head = shape.head(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for gate, block in zip(self.gates, (self.block0, self.block1, self.block2), strict=True):
            h = h + gate * block(h)
        logits: torch.Tensor = self.head(self.pool(h).flatten(1))
        return logits


def one_cut(shape: Shape, kind: int) -> nn.Module:
    """Block ``kind`` is all but cut off."""
    return Residual(shape, frozenset({kind}))


def one_left(shape: Shape, kind: int) -> nn.Module:
    """All blocks but block ``kind`` are all but cut off."""
    return Residual(shape, frozenset({0, 1, 2}) - {kind})


HOSTS: Final[dict[str, Callable[[Shape, int], nn.Module]]] = {
    "pointwise": pointwise,
    "sighted": sighted,
    "branches": Branches,
    "one-cut": one_cut,
    "one-left": one_left,
}
"""Name -> what makes a host from a shape and a kind."""
