"""Gradients that were changed before seeds had theirs are noticed, and those that were not are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from esper.leyline import UsageError
from esper.tolaria.order import Untouched


def unscale(layer: nn.Module) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    scaler.unscale_(torch.optim.SGD(layer.parameters(), lr=0.1))


def clip(layer: nn.Module) -> None:
    nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)


def halve(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.grad /= 2  # type: ignore[operator]


CHANGES: list[Callable[[Any], None]] = [unscale, clip, halve]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_between_is_noticed_and_what_is_changed_afterwards_is_not(
    change: Callable[[Any], None],
) -> None:
    layer, x, order = nn.Linear(3, 2), torch.ones(4, 3), Untouched()
    with order.watching(layer.parameters()):
        for _ in range(2):
            for _ in range(2):
                torch.autograd.backward(layer(x).sum())
            order.check(now=True)
            change(layer)
            order.check(now=True)
        torch.autograd.backward(layer(x).sum())
        change(layer)
        with pytest.raises(UsageError, match="between backward"):
            order.check(now=True)
        order.check(now=True)
    torch.autograd.backward(layer(x).sum())
    change(layer)
    order.check(now=True)


def test_a_gradient_that_is_gone_was_not_changed() -> None:
    layer, order = nn.Linear(3, 2), Untouched()
    with order.watching(layer.parameters()):
        torch.autograd.backward(layer(torch.ones(4, 3)).sum())
        layer.zero_grad()
        order.check(now=True)


def test_what_an_accelerator_would_be_waited_for_is_told_when_it_is_asked_for() -> None:
    layer, order = nn.Linear(3, 2), Untouched()
    with order.watching(layer.parameters()):
        for change in (unscale, lambda layer: None):
            torch.autograd.backward(layer(torch.ones(4, 3)).sum())
            change(layer)
            order.check(now=False)
            layer.zero_grad()
        with pytest.raises(UsageError, match="between backward"):
            order.check(now=True)
