"""Choosing sites: blocks that repeat, else layers, spread evenly and always the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_hosts import Pointwise, ResidualNet, encoder, mlp
from torch import Tensor, nn

from esper.kasmina.auto import auto_sites
from esper.kasmina.growing import GrowingModel
from esper.leyline import UsageError
from esper.tasks.hosts import PointwiseHost2d


def test_auto_sites_are_the_repeated_blocks_spread_evenly() -> None:
    sample = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    assert auto_sites(Pointwise(), sample) == ["blocks.0", "blocks.1", "blocks.2"]
    assert auto_sites(PointwiseHost2d(8, 10), sample) == ["block0", "block1", "block2"]
    assert auto_sites(ResidualNet(), sample, 2) == ["blocks.0", "blocks.2"]
    assert auto_sites(mlp(), torch.randn(2, 6)) == ["1", "3"]
    assert auto_sites(encoder(), torch.randn(3, 4, 8), 1) == ["layers.2"]
    with pytest.raises(UsageError, match="name the sites"):
        auto_sites(nn.Linear(6, 3), torch.randn(2, 6))
    with pytest.raises(UsageError, match="at least 1"):
        auto_sites(mlp(), torch.randn(2, 6), 0)
    model = GrowingModel.wrap(mlp(), "auto", torch.randn(2, 6))
    assert list(model.slots) == ["1", "3"]


class Scale(nn.Module):
    """Writes on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.weight)


def test_what_cannot_carry_a_slot_is_passed_over() -> None:
    host = nn.Sequential(nn.Linear(6, 8), Scale(), nn.Linear(8, 3))
    assert auto_sites(host, torch.randn(4, 6)) == ["1"]


class Nested(nn.Module):
    """Pairs of parts in a list of lists, behind an embedding in a chain of three."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(self.norm(x))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        self.layers = nn.ModuleList(nn.ModuleList([self.Part(), self.Part()]) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for first, second in self.layers:
            x = second(first(x))
        return x


def test_lists_of_lists_hold_blocks() -> None:
    assert auto_sites(Nested(), torch.randn(4, 6), 4) == ["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"]


@pytest.mark.parametrize("change", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.orthogonal])
def test_layers_with_computed_weights_are_layers(change: Any) -> None:
    layers = [change(nn.Linear(i, 8)) for i in (6, 8, 8)]
    host = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())), nn.Linear(8, 4))
    assert auto_sites(host, torch.randn(4, 6)) == ["1", "3", "5"]
