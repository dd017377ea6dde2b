"""Counting by what runs, against the sums by hand; without loading torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from esper.kasmina.macs import counted


@pytest.mark.parametrize(
    ("run", "macs"),
    [
        (lambda: nn.Linear(5, 7)(torch.ones(3, 5)), 3 * 5 * 7),
        (lambda: nn.Conv2d(2, 8, 3, padding=1)(torch.ones(3, 2, 4, 4)), 3 * 16 * 9 * 2 * 8),
        (lambda: nn.Conv1d(4, 4, 3, groups=4)(torch.ones(2, 4, 6)), 2 * 4 * 4 * 3),
        (lambda: nn.LSTM(8, 8, batch_first=True)(torch.ones(3, 4, 8)), 3 * 4 * 2 * 8 * 32),
        (lambda: torch.relu(torch.ones(9)), 0),
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
def test_counts(run: Callable[[], Any], macs: int, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        assert counted(run) == macs


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, padding=1, stride=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv1d(4, 6, 5, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    ],
)
def test_a_convolutions_gradients_take_each_what_its_output_takes(layer: Any) -> None:
    x = torch.ones(2, layer.in_channels, *(9,) * len(layer.kernel_size), requires_grad=True)
    forward = counted(lambda: layer(x))
    assert forward > 0
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward
    assert counted(lambda: layer(x.detach()).sum().backward()) == 2 * forward
    layer.weight.requires_grad_(False)
    assert counted(lambda: layer(x).sum().backward()) == 2 * forward


def test_fused_attention_is_counted_in_its_parts_and_fusing_is_kept() -> None:
    batch, time, width, hidden = 3, 4, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
    projections = time * width * (3 * width + width)
    attention = 2 * time * time * width
    flags = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    with torch.no_grad():
        found = counted(lambda: layer(torch.ones(batch, time, width)))
    assert found == batch * (projections + attention + 2 * time * width * hidden)
    after = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    assert after == flags


@pytest.mark.slow  # a process of its own
def test_wrapping_loads_no_compiler() -> None:
    code = """
import sys, torch
from torch import nn
from esper.kasmina.growing import GrowingModel
GrowingModel.wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), ["1"], torch.ones(2, 4))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
