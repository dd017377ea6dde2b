"""Typed payload of every event, in one registry.

JSON Schema, the web page's types and the telemetry audit are generated from :data:`REGISTRY`. Emission validates
nothing; the journal reader decodes strictly against the payload type. A key under ``NotRequired`` is missing when the
value was not measured; it never stands in as a zero.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from esper.leyline.payloads import lifecycle, measured, policy, run, safety
from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import TelemetryEventType

_SPECS: tuple[PayloadSpec, ...] = (*lifecycle.SPECS, *run.SPECS, *measured.SPECS, *policy.SPECS, *safety.SPECS)

REGISTRY: Final = MappingProxyType({spec.event_type: spec for spec in _SPECS})
"""event type -> its payload, delivery class, producer and consumer."""

if len(REGISTRY) != len(_SPECS) or set(REGISTRY) != set(TelemetryEventType):
    raise RuntimeError(f"events without exactly one payload: {set(TelemetryEventType) ^ set(REGISTRY)}")

__all__ = ["REGISTRY", "PayloadSpec"]
