"""What every blueprint owes, over the whole registry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.kasmina.birth import parameter_count
from esper.kasmina.blueprints import build, get, names
from esper.kasmina.blueprints.convolution import groups
from esper.kasmina.blueprints.features import heads
from esper.kasmina.isolation import isolate
from esper.kasmina.layout import Layout
from esper.kasmina.slot import SeedSlot, SlotConfig
from esper.kasmina.state import Incubation
from esper.leyline import SeedStage

EVERY = [pytest.param(name, layout, id=f"{layout}-{name}") for layout in Layout for name in names(layout)]
IMAGES = [name for name in names(Layout.NCHW)]


def feature(layout: Layout, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(layout.shape(channels), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_identity_at_birth_with_the_declared_parameters(name: str, layout: Layout) -> None:
    for channels in (1, 2, 7, 12, 32):
        seed = build(name, channels, layout)
        h = feature(layout, channels)
        assert torch.equal(seed(h), h)
        assert parameter_count(seed) == get(name, layout).parameters(channels)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {"SGD": lambda g: 0.01 * g, "Adam": lambda g: 0.01 * g.sign()}
"""The first steps of the two optimizers, by hand: Adam's are the sign of the gradient."""


@pytest.mark.parametrize("optimizer", STEPS)
@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_learnable_at_birth(name: str, layout: Layout, optimizer: str) -> None:
    """Some tensor has a gradient at step 1, every tensor by step 3, and three steps reduce the error."""
    torch.manual_seed(0)
    seed = build(name, 8, layout)
    h, wanted = feature(layout, 8), feature(layout, 8, seed=1)
    touched: list[set[str]] = []
    losses: list[float] = []
    for _ in range(4):
        out = seed(h)
        assert out.shape == h.shape and torch.isfinite(out).all()
        loss = (out - wanted).square().mean()
        losses.append(loss.item())
        seed.zero_grad()
        loss.backward()
        touched.append({n for n, p in seed.named_parameters() if p.grad is not None and p.grad.any()})
        with torch.no_grad():
            for parameter in seed.parameters():
                assert parameter.grad is not None
                parameter -= STEPS[optimizer](parameter.grad)

    assert touched[0]
    assert set.union(*touched[:3]) == {n for n, _ in seed.named_parameters()}
    assert losses[-1] < losses[0]


def test_a_blueprint_that_can_never_learn_would_be_caught() -> None:
    """The mutant: a zero convolution behind a ReLU, whose gradient is zero for ever."""
    layer = torch.nn.Conv1d(4, 4, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, -1.0)  # type: ignore[arg-type]
    torch.relu(layer(feature(Layout.NCL, 4))).square().sum().backward()
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("incubation", Incubation)
@pytest.mark.parametrize("name", IMAGES)
def test_both_memory_formats_survive_isolation(name: str, incubation: Incubation, memory: torch.memory_format) -> None:
    """Forward and backward behind a detached feature, and behind a frozen host once blended in."""
    slot = SeedSlot("a", 8, config=SlotConfig(layout=Layout.NCHW, incubation=incubation))
    h = feature(Layout.NCHW, 8).to(memory_format=memory)
    assert slot.germinate(name, sample=h)
    slot.tick()
    assert slot.stage is SeedStage.TRAINING
    for x in (h, h.clone(memory_format=torch.preserve_format).requires_grad_()):
        slot(x, 1.0).square().sum().backward()
        if incubation is not Incubation.PROBE:
            slot(x).square().sum().backward()
    assert slot.state is not None
    slot.state.enter(SeedStage.BLENDING, None)
    for alpha in (0.5, 1.0):
        slot(h, alpha).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in slot.seed_parameters())


@pytest.mark.parametrize("name", [name for name in names(Layout.NTC) if name != "attention_full"])
def test_no_seed_reads_the_future(name: str) -> None:
    seed = build(name, 8, Layout.NTC)
    torch.manual_seed(0)
    for parameter in seed.parameters():
        torch.nn.init.normal_(parameter)
    h = feature(Layout.NTC, 8)
    changed = h.clone()
    changed[:, 5:] += 1.0
    # sums over the whole sequence, with zeros for the future, need not be in one order
    assert torch.allclose(seed(h)[:, :5], seed(changed)[:, :5], atol=1e-5)
    assert not torch.allclose(seed(h)[:, 5:], seed(changed)[:, 5:])


def test_attention_over_the_whole_sequence_does_read_it() -> None:
    seed = build("attention_full", 8, Layout.NTC)
    for parameter in seed.parameters():
        torch.nn.init.normal_(parameter)
    h = feature(Layout.NTC, 8)
    changed = h.clone()
    changed[:, 5:] += 1.0
    assert not torch.allclose(seed(h)[:, :5], seed(changed)[:, :5])


def test_isolate_hands_on_a_contiguous_input() -> None:
    h = feature(Layout.NCHW, 8).to(memory_format=torch.channels_last).requires_grad_()
    assert isolate(h).is_contiguous() and not isolate(h).requires_grad


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (2, 1), (7, 1), (8, 4), (12, 6), (64, 8), (9, 3)])
def test_groups_divide_the_channels_and_leave_two_in_each(channels: int, wanted: int) -> None:
    assert groups(channels) == wanted


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (8, 1), (16, 2), (24, 3), (64, 8), (384, 8), (7, 1)])
def test_heads_divide_the_channels_and_are_eight_wide(channels: int, wanted: int) -> None:
    assert heads(channels) == wanted
