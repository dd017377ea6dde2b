"""Trying a newborn: what is found, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.birth import examine, mixing, parameter_count
from esper.kasmina.layout import Layout
from esper.leyline import Positions, SiteMixing


class Broken(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        raise KeyError("nothing here\nand more")


class Stuck(nn.Module):
    """Zero convolution behind a ReLU: the gradient is zero for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        nn.init.zeros_(self.layer.weight)
        nn.init.constant_(self.layer.bias, -1.0)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.relu(self.layer(h))


def test_a_sound_seed() -> None:
    birth = examine(nn.Linear(4, 4), torch.randn(3, 4))
    assert (birth.parameters, birth.due_shape, birth.output_shape) == (20, "(3, 4)", "(3, 4)")
    assert (birth.finite, birth.learning_tensors, birth.error) == (True, 2, None)


def test_seeds_that_cannot_learn() -> None:
    h = torch.randn(3, 4)
    assert examine(Stuck(), h).learning_tensors == 0
    assert examine(nn.Identity(), h).learning_tensors == 0
    frozen = nn.Linear(4, 4).requires_grad_(False)
    assert examine(frozen, h).learning_tensors == 0


def test_what_a_seed_raises_is_its_verdict() -> None:
    birth = examine(Broken(), torch.randn(3, 4))
    assert birth.error is not None and birth.error.startswith("KeyError")
    assert birth.finite is birth.output_shape is birth.learning_tensors is None


def test_output_that_is_not_finite() -> None:
    assert examine(nn.Linear(4, 4), torch.full((3, 4), float("inf"))).finite is False


def test_buffers_gradients_and_the_random_stream_stay_as_they_were() -> None:
    seed = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)).train()
    before = {name: value.clone() for name, value in seed.state_dict().items()}
    stream = torch.get_rng_state()
    sample = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.no_grad():
        assert examine(seed, sample).learning_tensors == 4
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(value, before[name]) for name, value in seed.state_dict().items())
    assert sample.grad is None and all(parameter.grad is None for parameter in seed.parameters())


def test_shared_parameters_are_counted_once() -> None:
    layer = nn.Linear(4, 4)
    assert parameter_count(nn.Sequential(layer, layer)) == 20


class OneSize(nn.Module):
    """Mixes positions by a matrix, of one size of feature alone."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight.tril() if causal else weight)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.weight @ h


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_seed_for_one_size_mixes_is_measured_at_that_size(causal: bool) -> None:
    found = dict(mixing(OneSize(causal), Layout.NTC, (2, 6, 3), SiteMixing(Positions.CAUSAL)))
    assert set(found) == {"mixes_later", "mixes_examples"}
    assert found["mixes_examples"] == 0.0 and found["mixes_later"] is not None
    assert (found["mixes_later"] == 0.0) == causal


def test_what_no_feature_can_tell_is_not_measured() -> None:
    assert mixing(Broken(), Layout.NC, (2, 4), SiteMixing(None)) == (("mixes_examples", None),)
    assert mixing(nn.Identity(), Layout.NC, (2, 4), SiteMixing(None, channels=False, examples=True)) == (
        ("mixes_channels", 0.0),
    )


def test_a_reach_beyond_the_feature_at_hand_is_found() -> None:
    far = nn.Conv1d(4, 4, 3, padding=10, dilation=10)
    assert dict(mixing(far, Layout.NCL, (2, 4, 8), SiteMixing(Positions.CAUSAL)))["mixes_later"] > 0.01  # type: ignore[operator]


def test_measuring_what_is_mixed_leaves_the_seed_alone() -> None:
    seed = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).bfloat16()
    before, state = {name: t.clone() for name, t in seed.state_dict().items()}, torch.get_rng_state()
    assert mixing(seed, Layout.NC, (2, 4), SiteMixing(None)) == (("mixes_examples", 0.0),)
    assert all(torch.equal(tensor, before[name]) for name, tensor in seed.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and seed.training
