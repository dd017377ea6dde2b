"""One row of the payload registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.leyline.telemetry import Delivery, TelemetryEventType


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """Where an event comes from, what it carries, how it is delivered and where it is seen."""

    event_type: TelemetryEventType
    payload: Any
    """The TypedDict of ``event.data`` (or a union of them, told apart by ``kind``)."""
    delivery: Delivery
    producer: str
    consumer: str
