"""Hosts of the built-in tasks: small networks that lack something a seed can bring.

Every class stands alone. Its source needs only the names ``torch`` and ``nn``, so that an exported model can carry it.

Suffixes: B batch, C channels, L positions, H rows, W columns, T time.
"""

from __future__ import annotations

import torch
from torch import nn


class PointwiseHost1d(nn.Module):
    """Three blocks of pointwise convolution: each position is seen alone, so neighbours matter only after a pool.

    ``x_BCL -> logits [B, classes]``. Blocks 0 and 1 are followed by a max pool of 2; slots sit on the blocks' outputs,
    in front of the pools.
    """

    def __init__(self, length: int, classes: int, in_channels: int = 1, channels: int = 8) -> None:
        super().__init__()
        self.block0 = nn.Sequential(nn.Conv1d(in_channels, channels, 1), nn.GELU())
        self.block1 = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.GELU())
        self.block2 = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.GELU())
        self.pool = nn.MaxPool1d(2)
        self.head = nn.Linear(channels * (length // 4), classes)

    def forward(self, x_BCL: torch.Tensor) -> torch.Tensor:
        h_BCL = self.pool(self.block0(x_BCL))
        h_BCL = self.pool(self.block1(h_BCL))
        logits: torch.Tensor = self.head(self.block2(h_BCL).flatten(1))
        return logits


class PointwiseHost2d(nn.Module):
    """Three blocks of 1x1 convolution: each pixel is seen alone, so neighbours matter only after a pool.

    ``x_BCHW -> logits [B, classes]`` for square pictures. Blocks 0 and 1 are followed by a max pool of 2; slots sit on
    the blocks' outputs, in front of the pools.
    """

    def __init__(self, size: int, classes: int, in_channels: int = 1, channels: int = 8) -> None:
        super().__init__()
        self.block0 = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.GELU())
        self.block1 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.block2 = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(channels * (size // 4) ** 2, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h_BCHW = self.pool(self.block0(x_BCHW))
        h_BCHW = self.pool(self.block1(h_BCHW))
        logits: torch.Tensor = self.head(self.block2(h_BCHW).flatten(1))
        return logits
