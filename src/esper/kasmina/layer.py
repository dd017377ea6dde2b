"""What a seed beside a module has to fit: what the module takes and gives, and the geometry of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn

from esper.kasmina.layout import Layout


class Layer(StrEnum):
    """How a seed beside a module reads its input."""

    LINEAR = "linear"
    """``[..., inputs]`` to ``[..., outputs]``, each position on its own."""
    CONV = "conv"
    """``[batch, inputs, ...]`` to ``[batch, outputs, ...]``, over the windows of the module's own convolution."""
    EMBEDDING = "embedding"
    """Indices ``[...]`` to ``[..., outputs]``."""


CONVOLUTIONS: Final = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By the number of axes that are convolved over."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Geometry of a convolution, as ``torch.nn.Conv2d`` has it; one entry for each axis that is convolved over."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, layer: nn.modules.conv._ConvNd) -> Windows:
        """Those of a convolution without groups."""
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        return cls(
            tuple(layer.kernel_size), tuple(layer.stride), padding, tuple(layer.dilation), str(layer.padding_mode)
        )

    @classmethod
    def pointwise(cls, axes: int) -> Windows:
        """Each position alone."""
        return cls((1,) * axes, (1,) * axes, (0,) * axes, (1,) * axes)

    def convolution(self, inputs: int, outputs: int) -> nn.Module:
        """A convolution over the same windows, without a bias."""
        geometry: dict[str, Any] = {
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "padding_mode": self.padding_mode,
        }
        module: nn.Module = CONVOLUTIONS[len(self.kernel)](inputs, outputs, bias=False, **geometry)
        return module


@dataclass(frozen=True, slots=True)
class Beside:
    """The module beside which a seed grows: the seed takes its input and adds to its output.

    Stands where a :class:`Layout` stands for a seed behind a module.
    """

    layer: Layer
    inputs: int
    """Width of the input; of an embedding the number of indices."""
    outputs: int
    windows: Windows | None = None
    """Of a convolution."""
    padding_idx: int | None = None
    """Of an embedding: the index that is never learnt."""

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in the output."""
        return 1 if self.layer is Layer.CONV else -1

    @property
    def taps(self) -> int:
        """Positions that one output of a convolution sees."""
        return 1 if self.windows is None else prod(self.windows.kernel)

    def sample(self) -> Tensor:
        """A small input: random numbers, or indices."""
        generator = torch.Generator().manual_seed(0)
        if self.layer is Layer.EMBEDDING:
            return torch.randint(self.inputs, (4, 8), generator=generator)
        extents: tuple[int, ...] = (8,)
        if self.windows is not None:
            spread = zip(self.windows.kernel, self.windows.dilation, strict=True)
            extents = tuple(dilation * (kernel - 1) + 8 for kernel, dilation in spread)
        shape = (4, *extents, self.inputs) if self.layer is Layer.LINEAR else (4, self.inputs, *extents)
        return torch.randn(shape, generator=generator)

    def due(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input of ``shape``."""
        if self.layer is Layer.EMBEDDING:
            return (*shape, self.outputs)
        if self.layer is Layer.LINEAR:
            return (*shape[:-1], self.outputs)
        with torch.device("meta"):
            return tuple(self.map(self.outputs)(torch.empty(tuple(shape))).shape)

    def map(self, outputs: int) -> nn.Module:
        """A linear map of the input to ``outputs`` channels, over the same windows and without a bias."""
        if self.windows is not None:
            return self.windows.convolution(self.inputs, outputs)
        if self.layer is Layer.EMBEDDING:
            return nn.Embedding(self.inputs, outputs, padding_idx=self.padding_idx)
        return nn.Linear(self.inputs, outputs, bias=False)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of :meth:`map` to all outputs."""
        if self.layer is Layer.EMBEDDING:
            return self.inputs, self.outputs
        return self.outputs, self.inputs, *(() if self.windows is None else self.windows.kernel)

    def mapped(self, x: Tensor, weight: Tensor) -> Tensor:
        """What :meth:`map` to all outputs gives with this weight."""
        if self.layer is Layer.EMBEDDING:
            return nn.functional.embedding(x, weight, self.padding_idx)
        with torch.device("meta"):
            plain = self.map(self.outputs)
        out: Tensor = torch.func.functional_call(plain, {"weight": weight}, x)
        return out

    def mixer(self, inputs: int) -> nn.Module:
        """A linear map of ``inputs`` channels of an output to all of its channels, position by position."""
        if self.windows is not None:
            return Windows.pointwise(len(self.windows.kernel)).convolution(inputs, self.outputs)
        return nn.Linear(inputs, self.outputs, bias=False)


Fit = Layout | Beside
"""What a seed has to fit: behind a module the order of axes there, beside one the module."""
