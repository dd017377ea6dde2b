"""What each blueprint says that it mixes is what it mixes, measured by perturbation over the whole registry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.kasmina.birth import MIXING_TOLERANCE, spread
from esper.kasmina.blueprints import against, build, get, names
from esper.kasmina.layout import Layout
from esper.leyline import Positions, SiteMixing

EVERY = [pytest.param(name, layout, id=f"{layout}-{name}") for layout in Layout for name in names(layout)]
POSITIONS = ("mixes_later", "mixes_earlier")
CLEAR = 100 * MIXING_TOLERANCE


def measured(seed: nn.Module, layout: Layout) -> tuple[Positions, float]:
    """What positions of its output depend on, and the effect that examples have on each other."""
    found = spread(seed, layout, layout.shape(8, batch=3, extent=12), (*POSITIONS, "mixes_examples"))
    values = [found.get(name, 0.0) for name in POSITIONS]
    assert all(value <= MIXING_TOLERANCE or value > CLEAR for value in values), values
    later, earlier = (value > CLEAR for value in values)
    positions = Positions.ANY if later else Positions.CAUSAL if earlier else Positions.NONE
    return positions, found["mixes_examples"]


@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_a_declaration_is_true_to_the_letter(name: str, layout: Layout) -> None:
    torch.manual_seed(0)
    positions, examples = measured(build(name, 8, layout), layout)
    assert positions is get(name, layout).mixes
    assert examples <= MIXING_TOLERANCE


def test_a_mutant_is_found_out() -> None:
    torch.manual_seed(0)
    causal = build("depthwise3", 8, Layout.NTC)
    causal.body[1].kernel = 2  # one zero too few in front: the window reaches one position ahead
    assert measured(_Cut(causal), Layout.NTC)[0] is Positions.ANY
    assert measured(nn.Sequential(build("conv3", 8, Layout.NCL), _Whitened()), Layout.NCL)[1] > CLEAR


class _Cut(nn.Module):
    """Pads behind what it lost in front."""

    def __init__(self, seed: nn.Module) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        body = self.seed.body
        x = torch.cat([body[0](h), torch.zeros_like(h[:, :1])], 1)
        return h + body[3](body[2](body[1](x)))


class _Whitened(nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h / h.std(0, keepdim=True)


def test_what_speaks_against_a_blueprint() -> None:
    causal, nothing = SiteMixing(Positions.CAUSAL), SiteMixing(Positions.NONE, padding=False)
    assert against("attention", Layout.NTC, causal) is None
    assert "depends on later positions" in (against("attention_full", Layout.NTC, causal) or "")
    assert "padded" in (against("attention", Layout.NTC, nothing) or "")
    assert against("mlp", Layout.NTC, nothing) is None
    assert "not seen to mix" in (against("conv3", Layout.NCHW, SiteMixing(Positions.NONE)) or "")
    assert "channels" in (against("mlp", Layout.NC, SiteMixing(None, channels=False)) or "")
    assert all(against(name, layout, None) is None for layout in Layout for name in names(layout))
