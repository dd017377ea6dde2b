"""C7 and the value's scale: unrolling equals stepping, whatever starts where."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo.recurrent import Memory, State, ValueHead


def _looped(memory: Memory, x: torch.Tensor, state: State, starts: torch.Tensor) -> torch.Tensor:
    """One step after the other."""
    outputs = []
    for step, start in zip(x, starts, strict=True):
        state = memory.step(step, state, start)
        outputs.append(state[0])
    return torch.stack(outputs)


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.7, 1.0]))
def test_unrolling_equals_stepping(seed: int, steps: int, rows: int, p_start: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    memory = Memory(3, 4)
    x = torch.randn(steps, rows, 3, generator=draw)
    starts = torch.rand(steps, rows, generator=draw) < p_start
    state = tuple(torch.randn(rows, 4, generator=draw) for _ in range(2))
    unrolled = memory.unroll(x, state, starts)
    # one kernel over all steps or one per step, in single precision
    torch.testing.assert_close(unrolled, _looped(memory, x, state, starts), atol=1e-5, rtol=0)
    # the reset itself: without it the outputs differ wherever an episode starts late
    late = starts[1:].any() or (starts[0].any())
    ignored = memory.unroll(x, state, torch.zeros_like(starts))
    assert bool(late) == bool((unrolled - ignored).abs().max() > 1e-6)


def test_gradients_of_unrolling_equal_those_of_stepping() -> None:
    torch.manual_seed(0)
    memory = Memory(3, 4)
    x, state = torch.randn(9, 3, 3), memory.initial_state(3)
    starts = torch.rand(9, 3) < 0.3
    grads = []
    for run in (memory.unroll, lambda *args: _looped(memory, *args)):
        memory.zero_grad()
        run(x, state, starts).square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in memory.parameters() if parameter.grad is not None])
    assert len(grads[0]) == 4
    for ours, reference in zip(*grads, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 1000), st.floats(-100, 100), st.floats(0, 100))
def test_moving_the_scale_moves_no_value(seed: int, mean: float, spread: float) -> None:
    torch.manual_seed(seed)
    head, x = ValueHead(5), torch.randn(7, 5)
    before = head(x)
    for _ in range(3):
        head.observe(mean + spread * torch.randn(20))
        torch.testing.assert_close(head(x), before, atol=1e-3 * (1 + abs(mean) + spread), rtol=1e-4)


def test_the_scale_follows_returns_and_never_vanishes() -> None:
    head = ValueHead(2)
    assert head.scale == 1
    head.observe(torch.tensor([10.0, 30.0]))
    assert abs(head.scale.item() - (100 + 4) ** 0.5) < 1e-6
    constant = ValueHead(2)
    constant.observe(torch.ones(50))
    assert abs(constant.scale.item() - 0.1) < 1e-3
