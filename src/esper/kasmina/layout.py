"""How the axes of a host feature are ordered. N batch, C channels, L positions, H and W rows and columns, T time."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Layout(StrEnum):
    """Order of the axes of the tensor that a slot sits on."""

    NC = "NC"
    """Tabular features, ``[batch, channels]``."""
    NCL = "NCL"
    """1-D convolution, ``[batch, channels, positions]``."""
    NCHW = "NCHW"
    """2-D convolution, ``[batch, channels, rows, columns]``."""
    NTC = "NTC"
    """Transformer features, ``[batch, time, channels]``."""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.value)

    @property
    def channel_axis(self) -> int:
        """Axis of the channels, counted from the front."""
        return self.value.index("C")

    def shape(self, channels: int, batch: int = 4, extent: int = 8) -> tuple[int, ...]:
        """Shape of a small feature with ``channels`` channels and ``extent`` entries along every other axis."""
        sizes = {"N": batch, "C": channels}
        return tuple(sizes.get(axis, extent) for axis in self.value)


SPATIAL_DIMENSIONS: Final = MappingProxyType({Layout.NCL: 1, Layout.NCHW: 2})
"""Convolutional layouts and their number of spatial axes."""
