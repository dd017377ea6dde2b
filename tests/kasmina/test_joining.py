"""Batches are joined where that gives the bits that they give one by one, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.kasmina.joining import evaluate_batches
from esper.kasmina.structure import same_bits
from esper.kasmina.trial import ForwardCall

CONFIGS: list[dict[str, float]] = [{}, {"one": 0.0}, {"one": 1.0}]


class Elementwise(nn.Module):
    """No product is summed up: any batch gives the same bits, on any processor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.passes = nn.PReLU(4), 0

    def forward(self, x: Tensor) -> Any:
        self.passes += 1
        return self.after(self.body(x))

    def after(self, h: Tensor) -> Any:
        return h + h.roll(1, 1) * h.roll(2, 1)


class Mixing(Elementwise):
    """A mutant: what an example gives depends on those beside it."""

    def after(self, h: Tensor) -> Any:
        return h - h.mean(0)


class Waking(Elementwise):
    """A mutant: what mixes counts for nothing at first, as where a branch's last weights begin at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))

    def after(self, h: Tensor) -> Any:
        return h - self.share * h.mean(0)


class Drawing(Elementwise):
    """A mutant: chance goes on from example to example."""

    def after(self, h: Tensor) -> Any:
        return h * torch.rand_like(h)


class Small(Elementwise):
    """Takes eight examples, and no more."""

    def after(self, h: Tensor) -> Any:
        return h.reshape(-1, 4).contiguous().view(len(h), 4) if len(h) <= 8 else 1 / 0


class Tree(Elementwise):
    """Gives no single tensor."""

    def after(self, h: Tensor) -> Any:
        return {"out": h}


def grown(host: nn.Module, blueprint: str | None = None) -> GrowingModel:
    torch.manual_seed(0)
    model = GrowingModel.wrap(host, {"one": "body"}, torch.randn(2, 4))
    if blueprint is not None:
        seed(model, blueprint)
    return model.eval()


def seed(model: GrowingModel, blueprint: str) -> None:
    slot = model.slots["one"]
    assert slot.germinate(blueprint).passed and slot.state is not None
    slot.state.alpha = 0.5
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.add_(torch.randn_like(parameter))


def evaluated(model: GrowingModel, batches: int = 4) -> tuple[dict[tuple[int, int], Any], int]:
    """Outputs by batch and configuration, and the host's passes."""
    calls = [ForwardCall(each, lambda host, x: host(x)) for each in torch.randn(batches, 8, 4)]
    found: dict[tuple[int, int], Any] = {}
    model.host.passes = 0  # type: ignore[assignment]
    costs = evaluate_batches(model, calls, 8, CONFIGS, lambda batch, i, output: found.__setitem__((batch, i), output))
    passes = int(model.host.passes)  # type: ignore[arg-type]
    with torch.no_grad():
        for (batch, i), output in found.items():
            with torch.random.fork_rng(), model.alphas(CONFIGS[i]):
                again = model.run(calls[batch])
            assert same_bits(*(each["out"] if isinstance(each, dict) else each for each in (output, again)))
    assert len(found) == batches * len(CONFIGS) and len(costs) == batches
    assert len({cost.passes for cost in costs}) == 1 and costs[0].passes >= 1
    return found, passes


def test_what_gives_the_same_bits_is_joined_once_it_was_compared() -> None:
    model = grown(Elementwise())
    assert [evaluated(model)[1] for _ in range(5)] == [5, 5, 1, 5, 1], "compared at every power of two"
    assert [evaluated(model, 3)[1] for _ in range(3)] == [4, 4, 1], "another number of batches is another size"
    assert [evaluated(model, 1)[1] for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("host", [Mixing, Drawing, Small, Tree])
def test_what_does_not_is_run_one_by_one(host: type[Elementwise]) -> None:
    model = grown(host())
    first, *later = [evaluated(model)[1] for _ in range(3)]
    assert later == [4, 4] and first in (4, 5)


def test_what_differs_later_is_seen_later() -> None:
    model = grown(Waking())
    assert evaluated(model)[1] == 5
    torch.nn.init.ones_(model.host.share)  # type: ignore[arg-type]
    assert [evaluated(model)[1] for _ in range(2)] == [5, 4]


def test_a_seed_of_another_kind_is_compared_anew() -> None:
    model = grown(Elementwise(), "pointwise")
    evaluated(model), evaluated(model)
    assert {part for part, *_ in model.alike} == {None, ("one", "pointwise")}
    model.slots["one"].clear()
    seed(model, "mlp")
    evaluated(model), evaluated(model)
    assert {part for part, *_ in model.alike} == {None, ("one", "pointwise"), ("one", "mlp")}
    assert not model.double().alike, "other kernels round otherwise"
