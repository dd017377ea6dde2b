"""How much is told: telemetry levels over the delivery classes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Final

from esper.leyline import Delivery, TelemetryEventType, unknown


class Level(StrEnum):
    """Each level tells all that the one before it does, and more."""

    OFF = auto()
    """Nothing but what says so."""
    MINIMAL = auto()
    """What must be kept: lives of seeds, gates, episodes, epochs, governor, checkpoints."""
    NORMAL = auto()
    """Gauges too."""
    DEBUG = auto()
    """Sampled detail too."""

    @classmethod
    def parse(cls, name: str) -> Level:
        """The level of that name; raises ``UsageError``."""
        try:
            return cls(name)
        except ValueError:
            raise unknown("telemetry level", name, [level.value for level in cls]) from None


_CLASSES: Final[Mapping[Level, frozenset[Delivery]]] = {
    Level.OFF: frozenset(),
    Level.MINIMAL: frozenset({Delivery.MUST_KEEP}),
    Level.NORMAL: frozenset({Delivery.MUST_KEEP, Delivery.LATEST_WINS}),
    Level.DEBUG: frozenset(Delivery),
}
_ALWAYS: Final = frozenset({TelemetryEventType.TELEMETRY_LEVEL_SET})


def suppressed(
    level: Level, lifecycle_only: bool, delivery: Mapping[TelemetryEventType, Delivery]
) -> frozenset[TelemetryEventType]:
    """The event types that are not told. ``lifecycle_only`` tells what must be kept, and only that, at any level."""
    told = frozenset({Delivery.MUST_KEEP}) if lifecycle_only else _CLASSES[level]
    return frozenset(kind for kind, how in delivery.items() if how not in told) - _ALWAYS
