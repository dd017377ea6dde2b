"""Trying a newborn seed before it enters a slot: does it run, keep the shape, stay finite, and can it learn?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.kasmina.isolation import isolate


@dataclass(frozen=True, slots=True)
class Birth:
    """What one forward and backward pass of a newborn seed showed; ``None`` where it did not get that far."""

    parameters: int
    input_shape: str
    output_shape: str | None = None
    finite: bool | None = None
    learning_tensors: int | None = None
    """Parameters (tensors) that receive a gradient other than zero."""
    error: str | None = None


def parameter_count(module: nn.Module) -> int:
    """Scalars in all parameters of ``module``, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def examine(seed: nn.Module, sample: Tensor) -> Birth:
    """Run ``seed`` on the feature ``sample`` and take the gradient of a random projection of its output.

    Leaves the seed, its buffers and the global random stream as they were.
    """
    parameters, shape = parameter_count(seed), str(tuple(sample.shape))
    buffers = {name: buffer.clone() for name, buffer in seed.named_buffers()}
    devices = [sample.device] if sample.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            output = seed(isolate(sample))
            learning = _learning_tensors(seed, output)
    except Exception as error:  # a third party's module may raise anything, and that is its verdict
        return Birth(parameters, shape, error=f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        with torch.no_grad():
            for name, buffer in seed.named_buffers():
                buffer.copy_(buffers[name])
    finite = bool(torch.isfinite(output).all())
    return Birth(parameters, shape, str(tuple(output.shape)), finite, learning)


def _learning_tensors(seed: nn.Module, output: Tensor) -> int:
    wanted = [parameter for parameter in seed.parameters() if parameter.requires_grad]
    if not wanted or not output.requires_grad:
        return 0
    projection = (output * torch.randn_like(output)).sum()
    gradients = torch.autograd.grad(projection, wanted, allow_unused=True)
    return sum(gradient is not None and bool(gradient.any()) for gradient in gradients)
