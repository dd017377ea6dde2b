"""Candidates in empty places: they take part in their own passes and leave no trace in anybody else's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.kasmina.promise import Candidates
from esper.kasmina.trial import random_kept
from esper.leyline import UsageError

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3


class Host(nn.Module):
    """A linear layer, batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(5, 8)
        self.norm, self.drop, self.head = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.read(x))))


@pytest.fixture
def model() -> GrowingModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        host = Host().requires_grad_(False)
        return GrowingModel.wrap(host, ["+read", "norm"], X)


CHOSEN = {"read": "lora2", "norm": "mlp"}


def loss(model: GrowingModel) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def test_they_take_part_in_their_own_passes_alone(model: GrowingModel) -> None:
    candidates = Candidates(model, CHOSEN)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chance, modes = torch.get_rng_state(), {name: module.training for name, module in model.named_modules()}
    with random_kept(torch.device("cpu")):
        plain = loss(model)
    model.load_state_dict(before)
    gradients = candidates.gradients(lambda: loss(model))
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(slot.state is None and slot.seed is None for slot in model.slots.values())
    with random_kept(torch.device("cpu")):
        assert torch.equal(loss(model), plain)
    assert any(bool(each.any()) for each in gradients["read"] if each is not None)
    assert any(bool(each.any()) for each in gradients["norm"] if each is not None)


def test_what_they_have_learnt_is_in_the_pass(model: GrowingModel) -> None:
    candidates = Candidates(model, CHOSEN)
    model.eval()
    with torch.no_grad():
        plain = model(X)
        with candidates.standing():
            assert torch.equal(model(X), plain), "they are born as the identity"
            for parameter in candidates.parameters("read"):
                parameter.add_(0.3)
            assert not torch.allclose(model(X), plain)
        assert torch.equal(model(X), plain)


def test_gradients_are_those_of_the_loss_whatever_it_is_multiplied_by(model: GrowingModel) -> None:
    candidates = Candidates(model, CHOSEN)
    model.eval()
    plain, scaled = (candidates.gradients(lambda: loss(model), scale) for scale in (1.0, 1024.0))
    for slot_id, each in plain.items():
        for one, other in zip(each, scaled[slot_id], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("chosen", "named"), [({"red": "lora2"}, "read"), ({"read": "lora3"}, "lora2"), ({"norm": "lora2"}, "norm")]
)
def test_what_cannot_stand_there_is_refused(model: GrowingModel, chosen: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Candidates(model, chosen)


def test_a_slot_that_holds_a_seed_has_no_candidate(model: GrowingModel) -> None:
    model.slots["read"].germinate("lora2")
    with pytest.raises(UsageError, match="GERMINATED; candidates are for empty slots"):
        Candidates(model, {"read": "lora2"})


def test_a_pass_that_fails_leaves_the_taps_as_they_were(model: GrowingModel) -> None:
    def fails() -> Any:
        model(X)
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        Candidates(model, CHOSEN).gradients(fails)
    assert all(model.taps[slot_id].slot is slot for slot_id, slot in model.slots.items())
