"""Seeds for convolutional features, 1-D (``NCL``) and 2-D (``NCHW``): one family, one more axis.

Each is ``h + f(h)`` with a zero-initialised last layer, hence the identity at birth. ``f`` begins with a GroupNorm: it
knows nothing of the scale of the host's feature, and in a pilot on 8x8 digits (conv3 and conv5, four seeds each) it
ended 1 to 3 points above the same layers with the norm behind the convolution.

A GroupNorm pools all positions, and these convolutions look both ways. Where a host keeps later positions or padding
apart there are ``mlp``, which works on each position by itself, and for sequences ``causal`` ones, which look back
only: their norm is over channels.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from esper.kasmina.blueprints.modules import CausalConvolution, ChannelNorm, Residual, SqueezeExcite, zero_init
from esper.kasmina.blueprints.registry import register
from esper.kasmina.layout import SPATIAL_DIMENSIONS, Layout
from esper.leyline import Positions

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d}
_MOST_GROUPS = 8


def groups(channels: int) -> int:
    """Groups of the GroupNorm: the most, up to 8, that divide ``channels`` and leave two channels in each."""
    return max(n for n in range(1, _MOST_GROUPS + 1) if channels % n == 0 and (n == 1 or channels // n > 1))


def _hidden(channels: int) -> int:
    return max(1, channels // 4)


def _conv(layout: Layout, inputs: int, outputs: int, kernel: int, *, depthwise: bool = False) -> nn.Module:
    kind = _CONVOLUTION[SPATIAL_DIMENSIONS[layout]]
    module: nn.Module = kind(inputs, outputs, kernel, padding=kernel // 2, groups=inputs if depthwise else 1)
    return module


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(groups(channels), channels)


def _pointwise(channels: int, layout: Layout) -> nn.Module:
    """Mixes channels."""
    return Residual(zero_init(_conv(layout, channels, channels, 1)))


def _spatial(channels: int, layout: Layout, *, kernel: int, depthwise: bool) -> nn.Module:
    """Looks at neighbours, then mixes channels."""
    return Residual(
        _norm(channels),
        _conv(layout, channels, channels, kernel, depthwise=depthwise),
        nn.ReLU(),
        zero_init(_conv(layout, channels, channels, 1)),
    )


def _bottleneck(channels: int, layout: Layout) -> nn.Module:
    """Down to a quarter of the channels, 3-wide convolution, and up again (He et al., 2016)."""
    hidden = _hidden(channels)
    return Residual(
        _norm(channels),
        _conv(layout, channels, hidden, 1),
        nn.ReLU(),
        _conv(layout, hidden, hidden, 3),
        nn.ReLU(),
        zero_init(_conv(layout, hidden, channels, 1)),
    )


def _stack(channels: int, layout: Layout) -> nn.Module:
    """Two full 3-wide convolutions and a channel mixer."""
    return Residual(
        _norm(channels),
        _conv(layout, channels, channels, 3),
        nn.ReLU(),
        _conv(layout, channels, channels, 3),
        nn.ReLU(),
        zero_init(_conv(layout, channels, channels, 1)),
    )


def _mlp(channels: int, layout: Layout) -> nn.Module:
    """Normalised two-layer network of each position by itself, twice as wide inside."""
    return Residual(
        ChannelNorm(channels),
        _conv(layout, channels, 2 * channels, 1),
        nn.GELU(),
        zero_init(_conv(layout, 2 * channels, channels, 1)),
    )


def _causal(channels: int, layout: Layout, *, kernel: int, depthwise: bool) -> nn.Module:
    """Looks back over ``kernel`` positions, then mixes channels."""
    return Residual(
        ChannelNorm(channels),
        CausalConvolution(channels, kernel, channels if depthwise else 1),
        nn.GELU(),
        zero_init(_conv(layout, channels, channels, 1)),
    )


def _register_causal(name: str, *, kernel: int, depthwise: bool) -> None:
    def parameters(c: int) -> int:
        return 2 * c + c * (1 if depthwise else c) * kernel + c + c * c + c

    register(name, (Layout.NCL,), parameters, Positions.CAUSAL)(partial(_causal, kernel=kernel, depthwise=depthwise))


def _register_spatial(name: str, layout: Layout, *, kernel: int, depthwise: bool) -> None:
    taps: int = kernel ** SPATIAL_DIMENSIONS[layout]

    def parameters(c: int) -> int:
        return 2 * c + c * (1 if depthwise else c) * taps + c + c * c + c

    register(name, (layout,), parameters, Positions.ANY)(partial(_spatial, kernel=kernel, depthwise=depthwise))


def _register(layout: Layout) -> None:
    d = SPATIAL_DIMENSIONS[layout]
    family = partial(register, layouts=(layout,), mixes=Positions.ANY)  # a GroupNorm alone pools all positions
    family("norm", parameters=lambda c: 2 * c)(lambda c, _: Residual(zero_init(_norm(c))))
    family("pointwise", parameters=lambda c: c * c + c, mixes=Positions.NONE)(_pointwise)
    for kernel in (3, 5):
        _register_spatial(f"depthwise{kernel}", layout, kernel=kernel, depthwise=True)
    for kernel in (3, 5, 7):
        _register_spatial(f"conv{kernel}", layout, kernel=kernel, depthwise=False)
    family("bottleneck", parameters=lambda c: 3 * c + 2 * _hidden(c) * (c + 1) + _hidden(c) ** 2 * 3**d)(_bottleneck)
    family("squeeze_excite", parameters=lambda c: 2 * c * _hidden(c) + c + _hidden(c))(
        lambda c, _: SqueezeExcite(c, _hidden(c))
    )
    family("conv3x2", parameters=lambda c: 2 * c + 2 * (c * c * 3**d + c) + c * c + c)(_stack)
    family("mlp", parameters=lambda c: 2 * c + 4 * c * c + 2 * c + c, mixes=Positions.NONE)(_mlp)


for _layout in SPATIAL_DIMENSIONS:
    _register(_layout)
for _kernel in (3, 5):
    _register_causal(f"causal_depthwise{_kernel}", kernel=_kernel, depthwise=True)
    _register_causal(f"causal_conv{_kernel}", kernel=_kernel, depthwise=False)
