"""One row of the payload registry."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, get_args

from esper.leyline.payloads.producers import PRODUCERS
from esper.leyline.telemetry import Delivery, TelemetryEventType


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """What an event carries, how it is delivered, where it comes from and where it is seen."""

    event_type: TelemetryEventType
    payload: Any
    """The TypedDict of ``event.data`` (or a union of them, told apart by ``kind``)."""
    delivery: Delivery
    consumer: str

    @property
    def members(self) -> tuple[Any, ...]:
        """The TypedDicts that ``event.data`` may be."""
        return get_args(self.payload) or (self.payload,)

    @property
    def producers(self) -> tuple[str, ...]:
        """The modules that emit the event, below ``esper``; the table is generated from their source."""
        return PRODUCERS.get(self.event_type.name, ())

    @property
    def description(self) -> str:
        """What the event says: the docstrings of its payloads."""
        return "\n\n".join(inspect.getdoc(member) or "" for member in self.members)
