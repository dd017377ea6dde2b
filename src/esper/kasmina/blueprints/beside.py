"""Seeds beside a module: they see its input and add to its output."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Final

from torch import nn

from esper.kasmina.blueprints.low_rank import LowRank, ParallelAdapter
from esper.kasmina.blueprints.modules import zero_init
from esper.kasmina.blueprints.registry import register
from esper.kasmina.layer import Beside, Layer
from esper.leyline import Positions

LORA_ALPHA: Final = 8.0
"""What LoRA calls alpha: a seed of rank r is scaled by ``8 / sqrt(r)``. It is the default of PEFT's ``lora_alpha``."""
RANKS: Final = (2, 4, 8, 16, 32)
ADAPTER_SCALE: Final = 4.0
"""He et al. (2022), section 4.6."""
WIDTHS: Final = (16, 64)
"""Channels of an adapter's bottleneck."""


def _low_rank(_: int, beside: Beside, *, rank: int) -> nn.Module:
    """An embedding's table is the part that begins at zero: then the row of the padding stays so."""
    down, up = beside.map(rank), beside.mixer(rank)
    if beside.layer is Layer.EMBEDDING:
        zero_init(down)
        for weight in up.parameters():
            nn.init.normal_(weight)
    else:
        zero_init(up)
    return LowRank(down, up, LORA_ALPHA / sqrt(rank))


def _low_rank_size(beside: Beside, *, rank: int) -> int:
    return rank * (beside.inputs * beside.taps + beside.outputs)


def _adapter(_: int, beside: Beside, *, width: int) -> nn.Module:
    return ParallelAdapter(beside.map(width), zero_init(beside.mixer(width)), ADAPTER_SCALE)


for _rank in RANKS:
    register(f"lora{_rank}", Layer, partial(_low_rank_size, rank=_rank), Positions.NONE)(partial(_low_rank, rank=_rank))
for _width in WIDTHS:
    register(f"adapter{_width}", (Layer.LINEAR, Layer.CONV), partial(_low_rank_size, rank=_width), Positions.NONE)(
        partial(_adapter, width=_width)
    )
