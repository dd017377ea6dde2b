"""Of the benchmark of widening: what a widened MLP computes, and what its optimizer knows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import widening

from esper.tasks.hosts import TabularHost


@pytest.fixture
def learned() -> tuple[TabularHost, torch.optim.AdamW]:
    torch.manual_seed(0)
    host = TabularHost(5, 4, 3)
    optimizer = torch.optim.AdamW(host.parameters(), lr=0.05)
    for _ in range(5):
        step(host, optimizer)
    return host, optimizer


def step(host: TabularHost, optimizer: torch.optim.AdamW) -> None:
    inputs, targets = torch.arange(40.0).reshape(8, 5).sin(), torch.arange(8) % 3
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(host(inputs), targets).backward()
    optimizer.step()


@pytest.mark.parametrize("split", [True, False])
def test_it_computes_what_it_computed(learned: tuple[TabularHost, torch.optim.AdamW], split: bool) -> None:
    host, inputs = learned[0], torch.randn(6, 5)
    wide = widening.widened(host, split, noise=0.0)
    assert torch.allclose(wide(inputs), host(inputs), atol=1e-6)
    assert wide.head.in_features == 8 and not torch.equal(wide.block1[0].weight[4:], torch.zeros(4, 8))
    if split:
        assert not torch.allclose(widening.widened(host, split, noise=0.5)(inputs), host(inputs), atol=1e-3)


def test_a_split_goes_on_as_if_its_moments_were_its_own(learned: tuple[TabularHost, torch.optim.AdamW]) -> None:
    """A twin that was wide all the time, in which both halves of every unit began alike, has the same moments."""
    narrow = learned[0]
    wide, twin = (widening.widened(narrow, split=True, noise=0.0) for _ in range(2))
    # without a rate, so that they compute the same all the time
    still = [torch.optim.AdamW(each.parameters(), lr=0.0) for each in (narrow, twin)]
    for _ in range(3):
        step(narrow, still[0])
        step(twin, still[1])
    new = torch.optim.AdamW(wide.parameters(), lr=0.0)
    widening.carried(still[0], new, split=True)
    for one, other in zip(wide.parameters(), twin.parameters(), strict=True):
        for name in ("step", *widening.MOMENTS):
            assert torch.allclose(new.state[one][name], still[1].state[other][name], rtol=1e-4, atol=1e-10), name


def test_of_fresh_units_the_optimizer_knows_nothing(learned: tuple[TabularHost, torch.optim.AdamW]) -> None:
    host, optimizer = learned
    wide = widening.widened(host, split=False)
    new = torch.optim.AdamW(wide.parameters(), lr=0.05)
    widening.carried(optimizer, new, split=False)
    moments = new.state[wide.block1[0].weight]["exp_avg"]
    assert torch.equal(moments[:4, :4], optimizer.state[host.block1[0].weight]["exp_avg"])
    assert not moments[4:].any() and not moments[:, 4:].any()
    step(wide, new)
