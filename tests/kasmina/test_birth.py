"""Trying a newborn: what is found, and that nothing is left behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.kasmina.birth import examine, parameter_count


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
    assert (birth.parameters, birth.input_shape, birth.output_shape) == (20, "(3, 4)", "(3, 4)")
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
