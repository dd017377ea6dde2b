"""Seeds whose last axis is the channels: tabular features (``NC``) and transformer features (``NTC``).

What mixes positions (depthwise, attention) exists for transformers only and looks back only, so that a seed in a
language model cannot read the answer; ``attention_full`` is for models that may see the whole sequence.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from esper.kasmina.blueprints.modules import Attention, CausalDepthwise, Residual, SqueezeExcite, zero_init
from esper.kasmina.blueprints.registry import register
from esper.kasmina.layout import Layout
from esper.leyline import Positions

_BOTH = (Layout.NC, Layout.NTC)
_LEAST_HEAD_WIDTH = 8


def _hidden(channels: int) -> int:
    return max(1, channels // 4)


def heads(channels: int) -> int:
    """Attention heads: the most, up to 8, that divide ``channels`` and are at least 8 wide."""
    return max(n for n in range(1, 9) if channels % n == 0 and (n == 1 or channels // n >= _LEAST_HEAD_WIDTH))


@register("norm", _BOTH, lambda c: 2 * c, Positions.NONE)
def _norm(channels: int, _: Layout) -> nn.Module:
    return Residual(zero_init(nn.LayerNorm(channels)))


@register("pointwise", _BOTH, lambda c: c * c + c, Positions.NONE)
def _pointwise(channels: int, _: Layout) -> nn.Module:
    return Residual(zero_init(nn.Linear(channels, channels)))


def _two_layers(channels: int, _: Layout, *, widen: int) -> nn.Module:
    """Normalised two-layer network, ``widen`` times as wide inside."""
    return Residual(
        nn.LayerNorm(channels),
        nn.Linear(channels, widen * channels),
        nn.GELU(),
        zero_init(nn.Linear(widen * channels, channels)),
    )


register("mlp", _BOTH, lambda c: 2 * c + 4 * c * c + 2 * c + c, Positions.NONE)(partial(_two_layers, widen=2))
register("mlp_large", _BOTH, lambda c: 2 * c + 8 * c * c + 4 * c + c, Positions.NONE)(partial(_two_layers, widen=4))


@register("bottleneck", _BOTH, lambda c: 2 * c + 2 * c * _hidden(c) + _hidden(c) + c, Positions.NONE)
def _bottleneck(channels: int, _: Layout) -> nn.Module:
    """Adapter: down to a quarter of the channels and up again (Houlsby et al., 2019)."""
    return Residual(
        nn.LayerNorm(channels),
        nn.Linear(channels, _hidden(channels)),
        nn.GELU(),
        zero_init(nn.Linear(_hidden(channels), channels)),
    )


def _low_rank(channels: int, _: Layout, *, rank: int) -> nn.Module:
    """Linear map of low rank (Hu et al., 2022, "LoRA")."""
    return Residual(
        nn.Linear(channels, rank, bias=False),
        zero_init(nn.Linear(rank, channels, bias=False)),
    )


register("lora", _BOTH, lambda c: 2 * c * 8, Positions.NONE)(partial(_low_rank, rank=8))
register("lora_large", _BOTH, lambda c: 2 * c * 32, Positions.NONE)(partial(_low_rank, rank=32))


@register("squeeze_excite", (Layout.NC,), lambda c: 2 * c * _hidden(c) + c + _hidden(c), Positions.NONE)
def _squeeze_excite(channels: int, _: Layout) -> nn.Module:
    return SqueezeExcite(channels, _hidden(channels))


def _depthwise(channels: int, _: Layout, *, kernel: int) -> nn.Module:
    """Each channel looks back over ``kernel`` positions, then channels mix."""
    return Residual(
        nn.LayerNorm(channels),
        CausalDepthwise(channels, kernel),
        nn.GELU(),
        zero_init(nn.Linear(channels, channels)),
    )


register("depthwise3", (Layout.NTC,), lambda c: 2 * c + 3 * c + c + c * c + c, Positions.CAUSAL)(
    partial(_depthwise, kernel=3)
)
register("depthwise5", (Layout.NTC,), lambda c: 2 * c + 5 * c + c + c * c + c, Positions.CAUSAL)(
    partial(_depthwise, kernel=5)
)


def _attention(channels: int, _: Layout, *, causal: bool) -> nn.Module:
    return Residual(nn.LayerNorm(channels), Attention(channels, heads(channels), causal))


register("attention", (Layout.NTC,), lambda c: 2 * c + 4 * c * c + c, Positions.CAUSAL)(
    partial(_attention, causal=True)
)
register("attention_full", (Layout.NTC,), lambda c: 2 * c + 4 * c * c + c, Positions.ANY)(
    partial(_attention, causal=False)
)
