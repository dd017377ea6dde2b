"""JSON Schema of all that travels between server and page, with the codes of the board's columns.

    python -m esper.karn.web.types > schema.json

The page's TypeScript types are generated from it.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from esper.karn.compare import Comparison
from esper.karn.curves import RunCurves
from esper.karn.runtable import RunAbout, RunTable
from esper.karn.schema import json_schema
from esper.karn.web.columns import CELL_COLUMNS, ENV_COLUMNS, NO_STAGE, GateVerdict, Kind
from esper.karn.web.feed import Request
from esper.karn.web.frames import MAGIC, View
from esper.karn.web.guard import PROTOCOL, TOKEN_PREFIX
from esper.karn.words import GLYPHS
from esper.leyline import SeedStage, TelemetryEventType


def page_schema() -> dict[str, Any]:
    """Schema of snapshot, drawer, frame content (``View``) and request, and under ``x-esper`` the constants."""
    schema = json_schema()
    _, components = msgspec.json.schema_components(
        (View, Request, Comparison, RunTable, RunAbout, RunCurves), ref_template="#/$defs/{name}"
    )
    schema["$defs"] = dict(sorted({**schema["$defs"], **components}.items()))
    schema["properties"] |= {"view": {"$ref": "#/$defs/View"}, "request": {"$ref": "#/$defs/Request"}}
    schema["properties"]["comparison"] = {"$ref": "#/$defs/Comparison"}
    schema["required"] = sorted(schema["properties"])
    schema["x-esper"] = {
        "magic": MAGIC.decode(),
        "protocol": PROTOCOL,
        "tokenPrefix": TOKEN_PREFIX,
        "envColumns": list(ENV_COLUMNS),
        "cellColumns": list(CELL_COLUMNS),
        "kinds": {kind.name: kind.value for kind in Kind},
        "gates": {gate.name: gate.value for gate in GateVerdict},
        "stages": {stage.name: stage.value for stage in SeedStage},
        "noStage": NO_STAGE,
        "glyphs": GLYPHS,
        "eventTypes": [kind.value for kind in TelemetryEventType],
    }
    return schema


def encoded() -> bytes:
    """The schema as the file that the page is built from."""
    return msgspec.json.format(msgspec.json.encode(page_schema(), order="deterministic"), indent=2) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(encoded())
