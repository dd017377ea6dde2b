"""Running a module without leaving a trace: modes, buffers and random number streams are afterwards as before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.checkpointing import reentrant_ones_replaced
from esper.kasmina.compiled import as_written
from esper.kasmina.sharded import gathered
from esper.leyline import UsageError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


@dataclass(frozen=True)
class ForwardCall:
    """A batch, and how its user runs the host on it: ``forward(host, inputs)``."""

    inputs: Any
    forward: Callable[[nn.Module, Any], Any]


Sample = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | ForwardCall
"""One batch as the host takes it: its only argument, a tuple of arguments or a mapping of keywords; or with how to."""


def arguments(sample: Sample) -> Arguments:
    """Positional and keyword arguments of one call. Raises ``UsageError`` for anything that has none."""
    if isinstance(sample, Tensor):
        return (sample,), {}
    if isinstance(sample, Mapping):
        return (), dict(sample)
    if isinstance(sample, tuple | list):
        return tuple(sample), {}
    raise UsageError(
        f"a sample is a tensor, a tuple of arguments or a mapping of keywords, not {type(sample).__name__}"
    )


def invoke(host: nn.Module, sample: Sample) -> Any:
    """One pass of the host over the sample, as its user makes it."""
    if isinstance(sample, ForwardCall):
        return sample.forward(host, sample.inputs)
    args, kwargs = arguments(sample)
    return host(*args, **kwargs)


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
    zeros = {parameter for parameter in module.parameters() if not torch.any(gathered(parameter.detach()))}
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
    with modes_kept(module) as found:
        module.train(training)
        try:
            yield
        finally:
            if any(was is not training for was in found.values()):
                module.train(not training)  # a module may do more than to set the flag


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Afterwards every submodule is in the mode in which it is now."""
    found = {each: each.training for each in module.modules()}
    try:
        yield found
    finally:
        for each, was in found.items():
            each.training = was


def held(host: nn.Module) -> list[nn.Module]:
    """What stays in evaluation mode while ``host`` is trained.

    That is what is in evaluation mode now, where not all of the host is. Where all of it is, as a pretrained model is
    when it comes, it is the parts whose parameters are all frozen, with everything in them.
    """
    if any(module.training for module in host.modules()):
        return [module for module in host.modules() if not module.training]
    frozen = [part for part in host.modules() if _frozen(part)]
    return list({inner: None for part in frozen for inner in part.modules()})


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def train(host: nn.Module, in_evaluation: Iterable[nn.Module]) -> None:
    """The host in training mode, but for what is held in evaluation mode."""
    host.train()
    for module in in_evaluation:
        module.training = False


@contextmanager
def trial(module: nn.Module, training: bool = False) -> Iterator[None]:
    """Run the module without gradients and without a trace."""
    with (
        mode(module, training),
        random_kept(device_of(module)),
        buffers_kept(module.modules()),
        reentrant_ones_replaced(),
        as_written(),
        torch.no_grad(),
    ):
        yield
