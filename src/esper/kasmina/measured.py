"""Facts that are measured of a seed, with their age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields as dataclass_fields
from typing import Any, Final

from torch import Tensor

from esper.kasmina.gradients import gradient_health, gradient_ratio, smooth, tensor_norms, total_norm
from esper.kasmina.state import SeedMetrics, SeedState
from esper.leyline import unknown

_FACTS: Final = tuple(each.name for each in dataclass_fields(SeedMetrics) if not each.name.endswith("_epoch"))
_HEALTH_FACTS: Final = ("gradient_health", "has_vanishing", "has_exploding")
_SHORT_NAMES: Final = {"gradient_ratio": "seed_gradient_norm_ratio"}


def record(state: SeedState | None, epoch: int | None, facts: dict[str, Any]) -> None:
    """Set measured facts of a seed, with ``epoch`` as their age.

    Names are those of :class:`SeedMetrics` and :class:`SeedTelemetry` (``gradient_ratio`` for short). ``None``
    means that there was no measurement, and changes nothing. Raises ``UsageError`` for an unknown fact.
    """
    for given, value in facts.items():
        name = _SHORT_NAMES.get(given, given)
        if name not in _FACTS + _HEALTH_FACTS:
            raise unknown("fact", given, _FACTS + _HEALTH_FACTS)
        if value is None or state is None:
            continue
        healthy = name in _HEALTH_FACTS
        owner = state.telemetry if healthy else state.metrics
        setattr(owner, name, value)
        setattr(owner, "gradient_health_epoch" if healthy else f"{name}_epoch", epoch)


def of_gradients(
    state: SeedState, gradients: Sequence[Tensor | None], host_norm: float | None, host_parameters: int, scale: float
) -> dict[str, Any]:
    """Ratio and health, as facts; see :meth:`SeedSlot.record_gradients`. What cannot be measured is not there."""
    norms = [norm / scale for norm in tensor_norms(gradients)]
    ratio = gradient_ratio(total_norm(norms), host_norm, state.parameters or 0, host_parameters)
    health = gradient_health(norms)
    facts: dict[str, Any] = {}
    if ratio is not None:
        facts["gradient_ratio"] = smooth(state.metrics.seed_gradient_norm_ratio, ratio)
    if health is not None:
        facts |= {name: getattr(health, "health" if name == "gradient_health" else name) for name in _HEALTH_FACTS}
    return facts
