"""Figures drawn from gradients: how much a seed learns, and how many of its gradients vanish or explode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from esper.kasmina.sharded import norms

RATIO_CAP: Final = 10.0
EMA_DECAY: Final = 0.9
VANISHING_NORM: Final = 1e-7
EXPLODING_NORM: Final = 100.0
VANISHING_PENALTY: Final = 0.5
EXPLODING_PENALTY: Final = 0.8


@dataclass(frozen=True, slots=True)
class GradientHealth:
    """``health`` in [0, 1]; 1 when no tensor's gradient vanishes or explodes."""

    health: float
    has_vanishing: bool
    has_exploding: bool


def tensor_norms(gradients: Iterable[Tensor | None]) -> list[float]:
    """Euclidean norm of each gradient (any shape) that is not ``None``, in order, in one transfer from the device."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return []
    found: list[float] = stacked(norms(present, lambda tensors: list(torch._foreach_norm(tensors)))).tolist()
    return found


def stacked(scalars: Sequence[Tensor]) -> Tensor:
    """Scalars of one format and device, or of several, as a vector."""
    if len({(each.dtype, each.device) for each in scalars}) == 1:
        return torch.stack(tuple(scalars))
    return torch.stack([each.to(scalars[0].device, torch.float64) for each in scalars])


def total_norm(norms: Sequence[float]) -> float | None:
    """Euclidean norm of all tensors together, from the norm of each; ``None`` without any."""
    return math.hypot(*norms) if norms else None


def gradient_ratio(
    seed_norm: float | None, host_norm: float | None, seed_parameters: int, host_parameters: int
) -> float | None:
    """``min(10, |g_seed| / |g_host| * sqrt(max(1, P_host / P_seed)))``, dimensionless: RMS gradient of the seed over
    the host's, where the seed is the smaller one.

    A seed larger than all that learns in the host, such as a fresh head on a frozen backbone, is compared by norm: its
    RMS falls with its size however much it learns.

    Norms are Euclidean, P counts parameters. ``None`` when either norm was not measured, there are no parameters or
    both norms are 0; 10 when only the host's is 0; NaN when a norm is.
    """
    if seed_norm is None or host_norm is None or seed_parameters < 1 or host_parameters < 1:
        return None
    if host_norm == 0.0:
        return None if seed_norm == 0.0 else RATIO_CAP
    ratio = seed_norm / host_norm * math.sqrt(max(1.0, host_parameters / seed_parameters))
    return ratio if math.isnan(ratio) else min(RATIO_CAP, ratio)


def smooth(previous: float | None, measured: float | None, decay: float = EMA_DECAY) -> float | None:
    """``decay * previous + (1 - decay) * measured``, an exponential moving average.

    It begins at the first measurement and begins again after a NaN. ``measured`` ``None`` leaves it as it was.
    """
    if measured is None:
        return previous
    if previous is None or math.isnan(previous):
        return measured
    return decay * previous + (1.0 - decay) * measured


def gradient_health(norms: Sequence[float]) -> GradientHealth | None:
    """``clamp(1 - .5 * share of vanishing - .8 * share of exploding)`` over tensor norms, ``None`` without gradients.

    A tensor's gradient vanishes below 1e-7 and explodes above 100; one that is not finite counts as exploding.
    """
    if not norms:
        return None
    vanishing = sum(norm < VANISHING_NORM for norm in norms)
    exploding = sum(not norm <= EXPLODING_NORM for norm in norms)
    health = 1.0 - (VANISHING_PENALTY * vanishing + EXPLODING_PENALTY * exploding) / len(norms)
    return GradientHealth(min(1.0, max(0.0, health)), vanishing > 0, exploding > 0)
