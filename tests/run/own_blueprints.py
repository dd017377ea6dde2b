"""A third party's blueprint, found as ``own_blueprints:channel_gate``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.kasmina.blueprints import Blueprint
from esper.kasmina.layout import Layout


class _Gate(nn.Module):
    """``h * (1 + w)``, one weight a channel, born as the identity."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.weight, self.axis = nn.Parameter(torch.zeros(channels)), axis

    def forward(self, h: Tensor) -> Tensor:
        shape = [1] * h.dim()
        shape[self.axis] = -1
        return h * (1 + self.weight.reshape(shape))


def _build(channels: int, layout: Layout) -> nn.Module:
    return _Gate(channels, 1)


channel_gate = Blueprint("channel_gate", frozenset({Layout.NC, Layout.NCHW}), lambda channels: channels, _build)
not_one = "a word"
