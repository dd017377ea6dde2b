"""Running a module without leaving a trace: modes, buffers and random number streams are afterwards as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def device_of(module: nn.Module) -> torch.device:
    """Where the module's tensors live; the CPU if it has none."""
    for group in (module.parameters(), module.buffers()):
        for tensor in group:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def random_kept(device: torch.device) -> Iterator[None]:
    """PyTorch's random number streams (CPU and ``device``) are afterwards as before."""
    if device.type == "cpu":
        state = torch.get_rng_state()
        try:
            yield
        finally:
            torch.set_rng_state(state)
    else:
        with torch.random.fork_rng([device.index or 0], device_type=device.type):
            yield


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the modules (but not their children) work on copies of their buffers."""
    kept = [
        (owner, name, buffer)
        for owner in modules
        if owner._buffers
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    copies = {buffer: buffer.clone() for _, _, buffer in kept}
    try:
        for owner, name, buffer in kept:
            owner._buffers[name] = copies[buffer]
        yield
    finally:
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer


@contextmanager
def livened(module: nn.Module) -> Iterator[None]:
    """Within, small random numbers stand in for every parameter that is all zero.

    A zero-initialised layer hides what comes before it: a head, or the last layer of a residual branch.
    """
    zeros = {parameter for parameter in module.parameters() if not torch.any(parameter)}
    generator = torch.Generator().manual_seed(0)
    noise = {
        zero: nn.Parameter(torch.randn(zero.shape, generator=generator).to(zero.device, zero.dtype) * 0.1, False)
        for zero in zeros
    }
    held = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter in zeros
    ]
    try:
        for owner, name, parameter in held:
            owner._parameters[name] = noise[parameter]
        yield
    finally:
        for owner, name, parameter in held:
            owner._parameters[name] = parameter


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Every submodule in training or evaluation mode, and afterwards each in its own."""
    found = [(each, each.training) for each in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for each, was in found:
            each.training = was


@contextmanager
def trial(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Run the module without gradients and without a trace."""
    with mode(module, training), random_kept(device_of(module)), buffers_kept(module.modules()), torch.no_grad():
        yield
