"""The seeds' own modules. They need nothing but torch, so that an exported model can carry this file as it is.

Suffixes: B batch, T time, C channels, H heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """``h + body(h)``, the identity while the last layer of ``body`` is zero.

    He et al., "Deep residual learning for image recognition" (2016); the zero start as in Goyal et al., "Accurate,
    large minibatch SGD" (2017), section 5.1.
    """

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, h: Tensor) -> Tensor:
        """``h`` of any shape that ``body`` keeps; returns that shape."""
        out: Tensor = h + self.body(h)
        return out


class SqueezeExcite(nn.Module):
    """Channel attention: each channel is scaled by ``1 + tanh(W2 relu(W1 mean(h)))``, 1 while ``W2`` is zero.

    Hu, Shen and Sun (2018), "Squeeze-and-excitation networks", with a gate that can start at the identity. The mean
    is over the axes behind the channels, so there is none for ``[batch, channels]``.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = zero_init(nn.Linear(hidden, channels))

    def forward(self, h: Tensor) -> Tensor:
        """``h`` and the result: ``[batch, channels, ...]``."""
        pooled = h.flatten(2).mean(2) if h.dim() > 2 else h
        gate = 1.0 + torch.tanh(self.excite(F.relu(self.squeeze(pooled))))
        return h * gate.reshape(gate.shape + (1,) * (h.dim() - 2))


class CausalDepthwise(nn.Module):
    """Depthwise convolution over time that looks back only, for ``[batch, time, channels]``.

    Van den Oord et al., "WaveNet" (2016), section 2.1, with one filter for each channel.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.convolution = nn.Conv1d(channels, channels, kernel, groups=channels)

    def forward(self, h_BTC: Tensor) -> Tensor:
        """``[batch, time, channels]``, the same back; the value at time t depends on times t - kernel + 1 to t."""
        padded = F.pad(h_BTC.transpose(1, 2), (self.kernel - 1, 0))
        out: Tensor = self.convolution(padded).transpose(1, 2)
        return out


class CausalConvolution(nn.Module):
    """Convolution that looks back only, for ``[batch, channels, positions]``.

    Van den Oord et al., "WaveNet" (2016), section 2.1.
    """

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.convolution = nn.Conv1d(channels, channels, kernel, groups=groups)

    def forward(self, h_BCL: Tensor) -> Tensor:
        """``[batch, channels, positions]``, the same back; position l depends on positions l - kernel + 1 to l."""
        out: Tensor = self.convolution(F.pad(h_BCL, (self.kernel - 1, 0)))
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position by itself, for ``[batch, channels, ...]``.

    Ba, Kiros and Hinton, "Layer normalization" (2016), as ConvNeXt has it (Liu et al., 2022).
    """

    def forward(self, h: Tensor) -> Tensor:
        """``[batch, channels, ...]``, the same back."""
        out: Tensor = super().forward(h.movedim(1, -1)).movedim(-1, 1)
        return out


class Attention(nn.Module):
    """Multi-head self-attention; with ``causal`` no position sees a later one.

    Vaswani et al., "Attention is all you need" (2017), section 3.2.
    """

    def __init__(self, channels: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, h_BTC: Tensor) -> Tensor:
        """``[batch, time, channels]``, the same back."""
        batch, time, channels = h_BTC.shape
        qkv = self.qkv(h_BTC).reshape(batch, time, 3, self.heads, channels // self.heads)
        q_BHTD, k_BHTD, v_BHTD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, channels))
        return out


def zero_init(layer: nn.Module) -> nn.Module:
    """``layer`` with every parameter set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
