"""Keeping a seed that is not yet part of the network from touching it, and measuring that it does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from esper.leyline import UsageError


def isolate(h: Tensor) -> Tensor:
    """``h`` (any shape) detached from the graph and contiguous: no gradient passes.

    Contiguous because GroupNorm's backward on CPU (torch 2.13) kills the process on a channels_last input that needs no
    gradient, which is what a detached host feature is.
    """
    return h.detach().contiguous()


class StraightThrough(torch.autograd.Function):
    """Straight-through estimator: the forward value is ``h``, bit for bit; the gradient is that of ``h + s``.

    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation" (2013).
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, s: Tensor) -> Tensor:
        """``h`` and ``s`` of one shape, any; returns ``h``, of which ``s`` changes no value."""
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the output, in its shape, for ``h`` and again for ``s``."""
        return gradients[0], gradients[0]


class IsolatedBlend(torch.autograd.Function):
    """``lerp(h, s, alpha)`` in which the seed's contribution ``alpha * (s - h)`` is a constant to the host.

    The plain gradient of the blend at alpha 1 would cut the host off from its own loss, since a detached seed carries
    nothing back through its skip connection.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, s: Tensor, alpha: float) -> Tensor:
        """``h`` and ``s`` of one shape, any, and ``alpha`` in (0, 1]; returns that shape."""
        ctx.alpha = alpha
        return blend(h, s, alpha)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """With ``g`` the gradient of the output: ``g`` for ``h``, ``alpha * g`` for ``s``, none for ``alpha``."""
        return gradients[0], gradients[0] * ctx.alpha, None


def added(h: Tensor, d: Tensor, alpha: float) -> Tensor:
    """``h + alpha * d`` of two tensors of one shape. Raises ``UsageError`` where they are not: nothing is broadcast."""
    if d.shape != h.shape:
        raise UsageError(f"a seed beside a module gives {list(d.shape)} where the module gives {list(h.shape)}")
    return torch.add(h, d, alpha=alpha)


def blend(h: Tensor, s: Tensor, alpha: float) -> Tensor:
    """``h + alpha * (s - h)`` of two tensors of one shape; exactly ``s`` at 1, where ``lerp`` makes NaN of an infinite
    ``h``."""
    return s if alpha == 1.0 else torch.lerp(h, s, alpha)


class IsolationMonitor:
    """Measures the gradient that takes the path host <- seed, and nothing else.

    :meth:`tap` puts a node of its own between the host's feature and the seed's input. The host's own gradient never
    passes it; gradient that arrives there came through the seed.
    """

    def __init__(self) -> None:
        self.passes = 0
        """Isolated passes with gradients enabled since :meth:`drain`."""
        self.violations = 0
        self.largest_norm = 0.0

    def tap(self, h: Tensor) -> Tensor:
        """``h``, watched. A feature that needs no gradient cannot be violated and counts as a clean pass."""
        self.passes += 1
        if not h.requires_grad:
            return h
        entry = h.view_as(h)
        entry.register_hook(self._reached)  # type: ignore[no-untyped-call]
        return entry

    def _reached(self, gradient: Tensor) -> None:
        norm = float(torch.linalg.vector_norm(gradient))
        if norm == 0.0:
            return
        self.violations += 1
        self.largest_norm = norm if math.isnan(norm) else max(self.largest_norm, norm)

    @property
    def counts(self) -> tuple[int, int, float]:
        """Passes, violations and the largest norm since :meth:`drain`."""
        return self.passes, self.violations, self.largest_norm

    @counts.setter
    def counts(self, counted: tuple[int, int, float]) -> None:
        self.passes, self.violations, self.largest_norm = counted

    def drain(self) -> tuple[int, int, float]:
        """Isolated passes since the last call, how often gradient that is not 0 came through, and its largest norm."""
        found, self.counts = self.counts, (0, 0, 0.0)
        return found
