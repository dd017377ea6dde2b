"""Running statistics that are frozen until they are told to move, and saved with the network as buffers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_SMALLEST_VARIANCE = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance per column of everything :meth:`observe` was given (Chan et al. 1983, pairwise merge).

    ``horizon`` caps the weight of the past, in samples: beyond it old samples are forgotten geometrically.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, horizon: float = math.inf) -> None:
        super().__init__()
        self.horizon = horizon
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))

    @property
    def std(self) -> Tensor:
        """Standard deviation per column, float64, never 0."""
        return (self.variance + _SMALLEST_VARIANCE).sqrt()

    @torch.no_grad()
    def observe(self, samples: Tensor) -> None:
        """Take in ``[M, width]`` samples; none is fine."""
        size = len(samples)
        if size == 0:
            return
        batch = samples.double()
        total = self.count + size
        shift = batch.mean(0) - self.mean
        spread = batch.var(0, correction=0) * size + shift.square() * self.count * size / total
        self.variance.copy_((self.variance * self.count + spread) / total)
        self.mean.add_(shift * size / total)
        self.count.copy_(total.clamp(max=self.horizon))


class RunningNorm(RunningMoments):
    """Columns shifted and scaled to mean 0 and standard deviation 1, clipped; the identity until it has seen data."""

    def __init__(self, width: int, clip: float = 10.0) -> None:
        super().__init__(width)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape, in standard deviations."""
        if self.count == 0:
            return x
        return ((x - self.mean.to(x.dtype)) / self.std.to(x.dtype)).clamp(-self.clip, self.clip)
