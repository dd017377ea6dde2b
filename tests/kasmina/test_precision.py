"""Number formats: seeds take that of their site, passes are made in that of the first, and outputs compared at it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from configs import evaluated
from small_hosts import mlp, put_seed
from torch import Tensor, nn

from esper.kasmina import blueprints
from esper.kasmina.export import compare, export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.layout import Layout
from esper.kasmina.precision import TOLERANCE, Autocast, tolerance
from esper.kasmina.slot import SeedSlot, SlotConfig
from esper.kasmina.trial import ForwardCall
from esper.leyline import SeedStage

CPU = torch.device("cpu")
NARROW = torch.bfloat16
DTYPES = [torch.bfloat16, torch.float16, torch.float64]


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_takes_the_format_of_its_site_at_birth_and_when_it_is_built_anew(dtype: torch.dtype) -> None:
    model = GrowingModel.wrap(mlp().to(dtype), ["1"], torch.randn(4, 6, dtype=dtype))
    put_seed(model, "1", SeedStage.HOLDING, 0.5)
    assert dtypes(model) == {dtype}
    before = model(torch.ones(2, 6, dtype=dtype))
    other = GrowingModel.wrap(mlp().to(dtype), ["1"], torch.randn(4, 6, dtype=dtype))
    other.load(model.topology(), model.state_dict())
    assert dtypes(other) == {dtype}
    assert torch.equal(other(torch.ones(2, 6, dtype=dtype)), before)
    torch.autograd.backward(before.sum())
    assert all(parameter.grad is not None for parameter in model.seed_parameters("1"))


def test_a_model_that_is_cast_builds_its_next_seeds_in_the_new_format() -> None:
    model = GrowingModel.wrap(mlp(), ["1", "3"], torch.randn(4, 6))
    put_seed(model, "1", SeedStage.HOLDING, 0.5)
    model.to(NARROW)
    put_seed(model, "3", SeedStage.HOLDING, 0.5)
    assert dtypes(model) == {NARROW}
    model.restore_topology(model.topology())
    assert dtypes(model) == {NARROW}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", list(Layout))
def test_every_blueprint_runs_in_the_format_of_its_site(layout: Layout, dtype: torch.dtype) -> None:
    h = torch.randn(layout.shape(8), generator=torch.Generator().manual_seed(0)).to(dtype)
    for name in blueprints.names(layout):
        slot = SeedSlot("slot", 8, config=SlotConfig(layout=layout))
        slot.dtype = dtype
        result = slot.germinate(name)
        assert result.passed, (name, result.message)
        assert slot.seed is not None and slot(h, 1.0).dtype is dtype


@pytest.mark.parametrize("layout", list(Layout))
def test_every_blueprint_learns_under_autocast_with_weights_as_the_host_has_them(layout: Layout) -> None:
    h = torch.randn(layout.shape(8), generator=torch.Generator().manual_seed(0)).to(NARROW)
    for name in blueprints.names(layout):
        slot = SeedSlot("slot", 8, config=SlotConfig(layout=layout))
        assert slot.germinate(name).passed
        with torch.autocast("cpu", NARROW):
            out = slot(h, 1.0)
        torch.autograd.backward(out.float().square().sum())
        assert out.dtype is NARROW, name
        assert any(p.grad is not None and p.grad.dtype is torch.float32 for p in slot.seed_parameters()), name


def cast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", NARROW):
        output: Tensor = model(x)
        return output


def test_where_autocast_makes_the_feature_a_seed_has_the_format_of_the_weights_around() -> None:
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), ["0"], ForwardCall(sample, cast))
    put_seed(model, "0", SeedStage.HOLDING, 0.5)
    assert dtypes(model) == {torch.float32}
    assert model.run(ForwardCall(sample, cast)).dtype is NARROW
    assert model.run(sample).dtype is torch.float32, "the same model without autocast"


def test_a_second_pass_has_the_autocast_of_the_first_wherever_it_is_made() -> None:
    torch.manual_seed(0)
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(mlp(), ["1"], sample)
    put_seed(model, "1", SeedStage.TRAINING)
    seen: list[torch.dtype] = []

    def loss_of(output: Tensor) -> Tensor:
        seen.append(output.dtype)
        return output.float().square().mean()

    with torch.autocast("cpu", NARROW), model.record() as tape:
        loss = loss_of(model(sample))
    torch.autograd.backward(loss)
    probe_backward(model, tape, loss_of, "1")
    found = [parameter.grad.clone() for parameter in model.seed_parameters("1")]
    assert seen == [NARROW, NARROW]
    with torch.autocast("cpu", NARROW), model.alphas({"1": 1.0}):
        loss = loss_of(model(sample))
    expected = torch.autograd.grad(loss, list(model.seed_parameters("1")))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with model.record() as tape:
        model(sample)
    with torch.autocast("cpu", NARROW):
        probe_backward(model, tape, loss_of, "1")
    assert seen[-1] is torch.float32, "the first pass was without"


def test_the_state_is_entered_from_anywhere_and_left_as_it_was() -> None:
    with torch.autocast("cpu", torch.float16):
        half = Autocast.now(CPU)
    off = Autocast.now(CPU)
    assert half.dtypes == {torch.float16} and not off.dtypes
    with half.entered():
        assert Autocast.now(CPU) == half
        with off.entered():
            assert not Autocast.now(CPU).dtypes
        assert Autocast.now(CPU) == half
    assert Autocast.now(CPU) == off


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ({torch.float32}, TOLERANCE),
        ({torch.float64, torch.int64}, TOLERANCE),
        ({torch.float32, torch.float16}, 4 * 2**-10),
        ({torch.bfloat16, torch.float16}, 4 * 2**-7),
    ],
)
def test_outputs_are_compared_at_the_precision_they_have(formats: set[torch.dtype], expected: float) -> None:
    assert tolerance(formats) == expected


@pytest.mark.parametrize("change", [lambda weight: weight + 1e-3, lambda weight: weight * 1.5])
def test_a_difference_of_a_rounding_is_none_in_a_narrow_format(change: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(mlp(), ["1"], sample)
    plain = export(model)
    with torch.no_grad():
        plain[4].bias.copy_(change(plain[4].bias))
    assert not compare(model, plain, sample).same
    with torch.autocast("cpu", NARROW):
        small = float((change(torch.tensor(0.1)) - 0.1).abs()) < 0.01
        assert compare(model, plain, sample).same is small


def test_evaluation_is_made_through_the_users_call() -> None:
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(mlp(), ["1"], ForwardCall(sample, cast))
    put_seed(model, "1", SeedStage.HOLDING, 0.5)
    found = evaluated(model, ForwardCall(sample, cast), [{}, {"1": 0.0}])
    assert [output.dtype for output in found.outputs] == [NARROW, NARROW]
    with model.alphas({"1": 0.0}):
        assert torch.equal(found.outputs[1], model.eval().run(ForwardCall(sample, cast)))


def test_weights_that_have_moved_inside_one_autocast_are_cast_anew() -> None:
    layer, x = nn.Linear(6, 3), torch.randn(2, 6)
    with torch.autocast("cpu", NARROW):
        layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        stale = layer(x)
        with Autocast.now(CPU).entered():
            fresh = layer(x)
    assert not torch.equal(stale, fresh), "torch keeps the cast weight until autocast ends"
    with torch.autocast("cpu", NARROW):
        assert torch.equal(layer(x), fresh)
