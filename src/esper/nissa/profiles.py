"""How deep the diagnostics look, by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from esper.leyline import unknown


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What a :class:`~esper.nissa.diagnostics.DiagnosticTracker` measures. Make one with :meth:`from_profile`."""

    layers: tuple[str, ...] = ()
    """Shell patterns over the names of modules that own parameters (``"*"``, ``"host.layer3.*"``)."""
    stride: int = 10
    """Gradients and activations are looked at in one training step of so many, the first among them."""
    history: int = 10
    """Snapshots that are kept."""
    per_class: bool = False
    """Accuracy of each class."""
    confusion: bool = False
    """Counts of true against predicted class."""
    percentiles: bool = False
    """1, 25, 50, 75 and 99 % points of each layer's gradient."""
    activations: bool = False
    """Mean, deviation and share of zeros of each layer's output."""
    landscape_samples: int = 0
    """Random directions in which the loss around the weights is probed."""
    landscape_scale: float = 0.01
    """Length of such a step, as a share of each parameter tensor's own norm."""

    @classmethod
    def from_profile(cls, name: str) -> TelemetryConfig:
        """``minimal``, ``standard``, ``diagnostic`` or ``research``; raises ``UsageError`` for another."""
        if name not in PROFILES:
            raise unknown("diagnostics profile", name, PROFILES)
        return PROFILES[name]


PROFILES: Final = MappingProxyType(
    {
        "minimal": TelemetryConfig(history=5),
        "standard": TelemetryConfig(layers=("*",)),
        "diagnostic": TelemetryConfig(layers=("*",), history=20, per_class=True, percentiles=True, landscape_samples=5),
        "research": TelemetryConfig(
            layers=("*",),
            stride=1,
            history=50,
            per_class=True,
            confusion=True,
            percentiles=True,
            activations=True,
            landscape_samples=10,
        ),
    }
)
"""Each measures all that the one before it does."""
