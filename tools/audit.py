"""Write what is generated from the source about telemetry, or with ``--check`` say what is not fresh.

Two files: the table of producers (``esper/leyline/payloads/producers.py``), and with it and the payload registry
``docs/specifications/telemetry-audit.md``: event, delivery, producers, consumer, what it says, keys.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import producers

from esper.leyline import REGISTRY, PayloadSpec

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "esper"
TABLE = PACKAGE / "leyline" / "payloads" / "producers.py"
PAGE = ROOT / "docs" / "specifications" / "telemetry-audit.md"


def kind_of(payload: Any) -> str | None:
    """The literal that tells one of several payloads from the others; ``None`` where the event has one alone."""
    kinds = get_args(get_type_hints(payload).get("kind"))
    return kinds[0] if kinds else None


def keys(payload: Any) -> str:
    """Required keys, then those that are missing when they were not measured, with a question mark."""
    hints = get_type_hints(payload, include_extras=True)
    # __required_keys__ does not see through annotations that are kept as text
    names = [f"{name}?" if get_origin(kind) is NotRequired else name for name, kind in hints.items()]
    return ", ".join(sorted(names, key=lambda name: (name.endswith("?"), name)))


def row(spec: PayloadSpec, payload: Any, emitters: dict[str, tuple[str, ...]]) -> str:
    """One line of the page."""
    kind = kind_of(payload)
    name = f"`{spec.event_type.name}`" + ("" if kind is None else f" `{kind}`")
    who = ", ".join(emitters.get(kind or spec.event_type.name, ()))
    says = " ".join((inspect.getdoc(payload) or "").split()).replace("``", "`")
    return f"| {name} | {spec.delivery.value} | {who} | {spec.consumer} | {says} | {keys(payload)} |"


def page(emitters: dict[str, tuple[str, ...]]) -> str:
    """The whole page."""
    specs = sorted(REGISTRY.values(), key=lambda spec: spec.event_type.name)
    head = [
        "# Telemetry audit",
        "",
        "Generated from `esper.leyline.REGISTRY` and the source by `python tools/audit.py`. A producer is a module that"
        " emits the event. A key with a question mark is missing when the value was not measured.",
        "",
        "| event | delivery | producer | consumer | what it says | payload |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row(spec, payload, emitters) for spec in specs for payload in spec.members), ""])


def main() -> int:
    """1 with ``--check`` when a file is not fresh."""
    payloads = [payload for spec in REGISTRY.values() for payload in spec.members]
    emitters = producers.derive(PACKAGE, frozenset(kind for payload in payloads if (kind := kind_of(payload))))
    wanted = {TABLE: producers.table(emitters), PAGE: page(emitters)}
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the source says; run: python tools/audit.py")
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
