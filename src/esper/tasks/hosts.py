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


class ConvHost(nn.Module):
    """Three convolutional blocks with batch normalisation on colour pictures, given as bytes.

    ``x_BCHW`` uint8, 3 channels of 0 to 255 ``-> logits [B, classes]``. The host normalises by itself, so that pictures
    stay a byte a pixel in memory and an exported model takes them raw. Blocks 0 and 1 are followed by a max pool of 2,
    block 2 by the mean over positions; slots sit on the blocks' outputs.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classes: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()

        def block(inputs: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())

        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.block0, self.block1, self.block2 = block(len(mean)), block(channels), block(channels)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(channels, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h_BCHW = (x_BCHW.to(self.mean.dtype) - self.mean) / self.std
        h_BCHW = self.pool(self.block0(h_BCHW))
        h_BCHW = self.pool(self.block1(h_BCHW))
        logits: torch.Tensor = self.head(self.block2(h_BCHW).mean(dim=(2, 3)))
        return logits


class CharTransformer(nn.Module):
    """Pre-norm transformer that predicts the next character and sees only those before it.

    ``x_BT`` int64 ``-> logits [B, T, characters]``. Slots sit on the blocks' outputs.
    """

    class Block(nn.Module):
        """Causal self-attention and an MLP, each added to the stream ``h_BTC``."""

        future: torch.Tensor

        def __init__(self, channels: int, heads: int, hidden: int, length: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm_in, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
            self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            self.register_buffer("future", future, persistent=False)

        def forward(self, h_BTC: torch.Tensor) -> torch.Tensor:
            B, T, C = h_BTC.shape
            qkv = self.qkv(self.norm_in(h_BTC)).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            q_BHTD, k_BHTD, v_BHTD = qkv.unbind(0)
            scores_BHTT = (q_BHTD @ k_BHTD.transpose(-1, -2)) * (C // self.heads) ** -0.5
            weights_BHTT = scores_BHTT.masked_fill(self.future[:T, :T], float("-inf")).softmax(dim=-1)
            h_BTC = h_BTC + self.out((weights_BHTT @ v_BHTD).transpose(1, 2).reshape(B, T, C))
            added_BTC: torch.Tensor = self.mlp(self.norm_mlp(h_BTC))
            return h_BTC + added_BTC

    def __init__(
        self,
        characters: int,
        length: int,
        channels: int = 32,
        heads: int = 2,
        blocks: int = 2,
        hidden: int | None = None,
    ) -> None:
        """``hidden`` is the width inside a block's MLP; ``None``: that of the stream."""
        super().__init__()
        self.token = nn.Embedding(characters, channels)
        self.place = nn.Embedding(length, channels)
        hidden = hidden or channels
        self.blocks = nn.ModuleList(self.Block(channels, heads, hidden, length) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, characters)

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        h_BTC = self.token(x_BT) + self.place.weight[: x_BT.shape[1]]
        for block in self.blocks:
            h_BTC = block(h_BTC)
        logits: torch.Tensor = self.head(self.norm(h_BTC))
        return logits


class TabularHost(nn.Module):
    """Two hidden layers on a row of numbers: ``x_BC -> prediction [B]``, or ``-> logits [B, classes]``.

    Slots sit on the blocks' outputs.
    """

    def __init__(self, columns: int, channels: int = 8, classes: int | None = None) -> None:
        super().__init__()
        self.block0 = nn.Sequential(nn.Linear(columns, channels), nn.GELU())
        self.block1 = nn.Sequential(nn.Linear(channels, channels), nn.GELU())
        self.head = nn.Linear(channels, 1 if classes is None else classes)
        self.classes = classes

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.block1(self.block0(x_BC)))
        return answer.squeeze(1) if self.classes is None else answer


class ResidualHost(nn.Module):
    """Residual network for small pictures in bytes (He et al., 2016, arXiv:1512.03385, section 4.2).

    ``x_BCHW`` uint8 ``-> logits [B, classes]``. Three stages of ``blocks`` blocks, the later two of half the side and
    twice the channels of the one before; 16 channels and 3 blocks are ResNet-20. Slots sit on the stages' outputs.
    """

    mean: torch.Tensor
    std: torch.Tensor

    class Block(nn.Module):
        """Two convolutions added to what comes in; where they make it smaller, its zero-padded every second pixel."""

        def __init__(self, inputs: int, channels: int) -> None:
            super().__init__()
            self.stride, self.more = (1 if inputs == channels else 2), channels - inputs
            self.conv0 = nn.Conv2d(inputs, channels, 3, stride=self.stride, padding=1, bias=False)
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm0, self.norm1 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

        def forward(self, h_BCHW: torch.Tensor) -> torch.Tensor:
            added_BCHW = self.norm1(self.conv1(torch.relu(self.norm0(self.conv0(h_BCHW)))))
            kept_BCHW = h_BCHW[:, :, :: self.stride, :: self.stride]
            return torch.relu(nn.functional.pad(kept_BCHW, (0, 0, 0, 0, 0, self.more)) + added_BCHW)

    def __init__(
        self, classes: int, channels: int, blocks: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(*(self.Block(outputs if i else inputs, outputs) for i in range(blocks)))

        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        first = nn.Conv2d(len(mean), channels, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(channels), nn.ReLU())
        self.stage0, self.stage1 = stage(channels, channels), stage(channels, 2 * channels)
        self.stage2 = stage(2 * channels, 4 * channels)
        self.head = nn.Linear(4 * channels, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h_BCHW = self.stem((x_BCHW.to(self.mean.dtype) - self.mean) / self.std)
        h_BCHW = self.stage2(self.stage1(self.stage0(h_BCHW)))
        logits: torch.Tensor = self.head(h_BCHW.mean(dim=(2, 3)))
        return logits


class PatchTransformer(nn.Module):
    """Vision transformer for small pictures in bytes (Dosovitskiy et al., 2021, arXiv:2010.11929), pre-norm.

    ``x_BCHW`` uint8 ``-> logits [B, classes]``: patches of ``patch`` pixels a side, the mean over them before the head.
    Slots sit on the blocks' outputs.
    """

    mean: torch.Tensor
    std: torch.Tensor

    class Block(nn.Module):
        """Self-attention over all patches and an MLP, each added to the stream ``h_BTC``."""

        def __init__(self, channels: int, heads: int, hidden: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm_in, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
            self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
            self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

        def forward(self, h_BTC: torch.Tensor) -> torch.Tensor:
            B, T, C = h_BTC.shape
            qkv = self.qkv(self.norm_in(h_BTC)).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            mixed_BHTD = nn.functional.scaled_dot_product_attention(*qkv.unbind(0))
            h_BTC = h_BTC + self.out(mixed_BHTD.transpose(1, 2).reshape(B, T, C))
            added_BTC: torch.Tensor = self.mlp(self.norm_mlp(h_BTC))
            return h_BTC + added_BTC

    def __init__(
        self,
        classes: int,
        size: int,
        patch: int,
        channels: int,
        blocks: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.patches = nn.Conv2d(len(mean), channels, patch, stride=patch)
        self.place = nn.Embedding((size // patch) ** 2, channels)
        self.blocks = nn.Sequential(*(self.Block(channels, 4, 2 * channels) for _ in range(blocks)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h_BCHW = self.patches((x_BCHW.to(self.mean.dtype) - self.mean) / self.std)
        h_BTC = self.blocks(h_BCHW.flatten(2).transpose(1, 2) + self.place.weight)
        logits: torch.Tensor = self.head(self.norm(h_BTC).mean(dim=1))
        return logits
