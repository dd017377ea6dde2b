"""Isolation: what reaches the host, what reaches the seed, and a monitor that tells the two apart."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import slot as slot_module
from esper.kasmina.isolation import IsolatedBlend, IsolationMonitor, StraightThrough, isolate
from esper.kasmina.layout import Layout
from esper.kasmina.slot import SeedSlot, SlotConfig
from esper.kasmina.state import Incubation

SPECIAL = torch.tensor([0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan")])


def bits(x: Tensor) -> Tensor:
    return x.detach().view(torch.int32)


@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_straight_through_is_bit_equal_to_the_host(poison: float) -> None:
    h = SPECIAL.clone().requires_grad_()
    s = torch.full_like(SPECIAL, poison).requires_grad_()
    out = StraightThrough.apply(h, s)
    assert torch.equal(bits(out), bits(h))

    g = torch.randn(6)
    (out * g).sum().backward()
    assert h.grad is not None and torch.equal(h.grad, g)
    assert s.grad is not None and torch.equal(s.grad, g)


@pytest.mark.parametrize("alpha", [0.25, 0.7, 1.0])
def test_isolated_blend_is_the_gradient_of_the_host_plus_a_constant(alpha: float) -> None:
    h, s, g = (torch.randn(5, dtype=torch.float64) for _ in range(3))
    one = [h.clone().requires_grad_(), s.clone().requires_grad_()]
    two = [h.clone().requires_grad_(), s.clone().requires_grad_()]
    fast = IsolatedBlend.apply(*one, alpha)
    slow = two[0] + alpha * (two[1] - two[0].detach())
    (fast * g).sum().backward()
    (slow * g).sum().backward()

    assert torch.allclose(fast, slow)
    for a, b in zip(one, two, strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad)


def test_monitor_sees_only_what_passes_its_tap() -> None:
    monitor = IsolationMonitor()
    h = torch.randn(3, requires_grad=True)
    (h * 2 + isolate(monitor.tap(h))).sum().backward()
    assert monitor.drain() == (1, 0, 0.0)

    (h * 2 + 3 * monitor.tap(h)).sum().backward()
    passes, violations, norm = monitor.drain()
    assert (passes, violations) == (1, 1)
    assert norm == pytest.approx(3 * 3**0.5)
    assert monitor.drain() == (0, 0, 0.0)


def test_monitor_counts_a_gradient_that_is_not_a_number() -> None:
    monitor = IsolationMonitor()
    h = torch.ones(2, requires_grad=True)
    (monitor.tap(h) * float("nan")).sum().backward()
    _, violations, norm = monitor.drain()
    assert violations == 1
    assert norm != norm


def _train(incubation: Incubation) -> SeedSlot:
    slot = SeedSlot("a", 4, config=SlotConfig(layout=Layout.NC, incubation=incubation))
    slot.germinate("mlp")
    slot.tick()
    host = nn.Linear(4, 4)
    for _ in range(3):
        slot(torch.relu(host(torch.randn(8, 4))), 1.0 if incubation is Incubation.PROBE else None).sum().backward()
        assert host.weight.grad is not None and host.weight.grad.any()
    slot.tick()
    return slot


@pytest.mark.parametrize("incubation", Incubation)
def test_ordinary_host_gradients_are_no_violation(incubation: Incubation) -> None:
    state = _train(incubation).state
    assert state is not None and state.metrics.isolation_violations == 0


@pytest.mark.parametrize("incubation", Incubation)
def test_a_slot_that_forgets_to_isolate_is_caught(incubation: Incubation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_module, "isolate", lambda h: h)
    state = _train(incubation).state
    assert state is not None and state.metrics.isolation_violations == 3


@pytest.mark.slow
def test_the_trap_that_isolate_steps_around_is_still_there() -> None:
    """If this fails, torch has been mended and ``contiguous`` may go."""
    script = (
        "import torch\n"
        "x = torch.randn(4, 8, 8, 8).to(memory_format=torch.channels_last)\n"
        "torch.nn.GroupNorm(4, 8)(x).sum().backward()\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -11
