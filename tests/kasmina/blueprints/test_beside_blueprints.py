"""What every blueprint of a seed beside a module owes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.kasmina.birth import MIXING_TOLERANCE, mixing_beside, parameter_count
from esper.kasmina.blueprints import build, get, names
from esper.kasmina.layer import Beside, Layer, Windows
from esper.leyline import SiteMixing

FITS = {
    "narrower": Beside(Layer.LINEAR, 9, 4),
    "wider": Beside(Layer.LINEAR, 3, 8),
    "strided": Beside(Layer.CONV, 3, 5, Windows((3, 2), (2, 1), (1, 0), (1, 2))),
    "same": Beside(Layer.CONV, 4, 4, Windows((3,), (1,), "same", (2,), "replicate")),
    "pointwise": Beside(Layer.CONV, 2, 6, Windows.pointwise(3)),
    "table": Beside(Layer.EMBEDDING, 13, 6, padding_idx=2),
}
EVERY = [pytest.param(name, fit, id=f"{key}-{name}") for key, fit in FITS.items() for name in names(fit)]


@pytest.mark.parametrize(("name", "fit"), EVERY)
def test_zero_at_birth_in_the_due_shape_with_the_declared_parameters(name: str, fit: Beside) -> None:
    torch.manual_seed(0)
    seed, x = build(name, fit.outputs, fit), fit.sample()
    assert torch.equal(seed(x), torch.zeros(fit.due(x.shape)))
    assert seed(x).shape == fit.map(fit.outputs)(x).shape
    assert parameter_count(seed) == get(name, fit).size(fit.outputs, fit)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize(("name", "fit"), EVERY)
def test_learnable_at_birth(name: str, fit: Beside, adam: bool) -> None:
    """Some tensor has a gradient at step 1, every tensor at step 2, and three steps reduce the error."""
    torch.manual_seed(0)
    seed, x = build(name, fit.outputs, fit), fit.sample()
    wanted = torch.randn(fit.due(x.shape))
    losses, touched = [], []
    for _ in range(4):
        loss = (seed(x) - wanted).square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(seed.parameters()))
        touched.append([bool(gradient.any()) for gradient in gradients])
        with torch.no_grad():
            for parameter, gradient in zip(seed.parameters(), gradients, strict=True):
                parameter -= 1e-3 * gradient.sign() if adam else 1e-2 * gradient
    assert any(touched[0]) and all(touched[1])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "fit"), [each for each in EVERY if "lora" in str(each.values[0])])
def test_delta_is_the_weight_of_what_it_computes(name: str, fit: Beside) -> None:
    torch.manual_seed(0)
    seed, x = build(name, fit.outputs, fit).double(), fit.sample()
    x = x.double() if x.is_floating_point() else x
    for parameter in seed.parameters():
        nn.init.normal_(parameter)
    assert seed.delta().shape == fit.weight_shape == fit.map(fit.outputs).weight.shape
    assert torch.allclose(seed(x), fit.mapped(x, seed.delta()))
    assert torch.linalg.matrix_rank(seed.delta().flatten(1)) <= int(name.removeprefix("lora"))


@pytest.mark.parametrize(("name", "fit"), EVERY)
def test_nothing_is_mixed_that_the_module_keeps_apart(name: str, fit: Beside) -> None:
    torch.manual_seed(0)
    ((measured, value),) = mixing_beside(build(name, fit.outputs, fit), fit, fit.sample(), SiteMixing(None))
    assert measured == "mixes_beyond_module" and value <= MIXING_TOLERANCE


def test_the_row_of_the_padding_is_never_learnt() -> None:
    torch.manual_seed(0)
    fit = FITS["table"]
    seed = build("lora2", fit.outputs, fit)
    seed(torch.tensor([[2, 3]])).sum().backward()
    assert not seed.down.weight.grad[2].any() and seed.down.weight.grad[3].any()
