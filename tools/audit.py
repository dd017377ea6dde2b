"""Write ``docs/specifications/telemetry-audit.md`` from the payload registry: event, payload, producer, consumer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NotRequired, get_origin, get_type_hints

from esper.leyline import REGISTRY

PAGE = Path(__file__).resolve().parent.parent / "docs" / "specifications" / "telemetry-audit.md"


def keys(payload: Any) -> str:
    """Required keys, then those that are missing when they were not measured, with a question mark."""
    members = [payload] if hasattr(payload, "__required_keys__") else list(payload.__args__)
    told = []
    for member in members:
        hints = get_type_hints(member, include_extras=True)
        # __required_keys__ does not see through annotations that are kept as text
        names = [f"{name}?" if get_origin(kind) is NotRequired else name for name, kind in hints.items()]
        told.append(", ".join(sorted(names, key=lambda name: (name.endswith("?"), name))))
    return "; ".join(told)


def page() -> str:
    """The whole page."""
    rows = [
        " | ".join(
            ("", f"`{s.event_type.name}`", s.delivery.value, s.producer, s.consumer, keys(s.payload), "")
        ).strip()
        for s in sorted(REGISTRY.values(), key=lambda s: s.event_type.name)
    ]
    head = [
        "# Telemetry audit",
        "",
        "Generated from `esper.leyline.REGISTRY` by `python tools/audit.py`. A key with a question mark is missing "
        "when the value was not measured; alternatives by kind are parted by a semicolon.",
        "",
        "| event | delivery | producer | consumer | payload |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def main() -> int:
    """Write the page, or with ``--check`` only say whether it is fresh."""
    if "--check" in sys.argv:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
