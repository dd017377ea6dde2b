"""Who emits what, read from the source: the table ``esper/leyline/payloads/producers.py`` is generated from this.

A module produces an event where it names the event's type other than to recognise it. To recognise is to compare with
it, to match on it, to index by it, or to list it as a key of a dict or a member of a set. What hands a type on that it
was given (a hub, ``session.say``) names none, so that the producer is the module that knows what happened.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ENUM = "TelemetryEventType"
WIDTH = 120
"""Longest line that the formatter leaves as it is."""


def _references(tree: ast.Module) -> Iterator[ast.Attribute]:
    """Every ``T.X``, whatever the enum is called here."""
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    names = {alias.asname or alias.name for alias in imports if alias.name == ENUM}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if (isinstance(owner, ast.Name) and owner.id in names) or (
                isinstance(owner, ast.Attribute) and owner.attr == ENUM
            ):
                yield node


def _recognised(tree: ast.Module) -> Iterator[ast.expr | None]:
    """Every expression that stands where a type is recognised."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                for operand in (left, *others):
                    yield operand
                    if isinstance(operand, ast.Tuple | ast.List):
                        yield from operand.elts
            case ast.Dict(keys=keys):
                yield from keys
            case ast.Set(elts=elements):
                yield from elements
            case ast.MatchValue(value=value) | ast.Subscript(slice=value):
                yield value


def _kinds(tree: ast.Module, kinds: frozenset[str]) -> Iterator[str]:
    """Every ``{"kind": "throughput"}`` and ``f(kind="throughput")`` with one of ``kinds``."""
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            values = [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "kind"]
        elif isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "kind"]
        for value in values:
            if isinstance(value, ast.Constant) and value.value in kinds:
                yield value.value


def emitted(source: str, kinds: frozenset[str] = frozenset()) -> set[str]:
    """The types of event that this source emits, by name, and those of ``kinds`` that it makes."""
    tree = ast.parse(source)
    recognised = {id(node) for node in _recognised(tree)}
    return {node.attr for node in _references(tree) if id(node) not in recognised} | set(_kinds(tree, kinds))


def derive(package: Path, kinds: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """Name of an event, or kind of a snapshot -> the modules of ``package`` that emit it. Contracts emit nothing."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] != "leyline":
            module = ".".join(parts).removesuffix(".__init__")
            for name in emitted(path.read_text(encoding="utf-8"), kinds):
                found.setdefault(name, []).append(module)
    return {name: tuple(modules) for name, modules in sorted(found.items())}


def table(producers: dict[str, tuple[str, ...]]) -> str:
    """The module that holds the table."""
    rows = []
    for name, modules in producers.items():
        quoted = [f'"{module}"' for module in modules]
        row = f'        "{name}": ({", ".join(quoted)}{"," if len(quoted) == 1 else ""}),'
        if len(row) > WIDTH:
            row = "\n".join([f'        "{name}": (', *(f"            {module}," for module in quoted), "        ),"])
        rows.append(row)
    head = (
        '"""Who emits what. Generated from the source by ``python tools/audit.py``; not for editing."""',
        "",
        "from __future__ import annotations",
        "",
        "from types import MappingProxyType",
        "from typing import Final",
        "",
        "PRODUCERS: Final = MappingProxyType(",
        "    {",
    )
    tail = (
        "    }",
        ")",
        '"""name of an event, or kind of an ``ANALYTICS_SNAPSHOT`` -> the modules that emit it."""',
        "",
    )
    return "\n".join([*head, *rows, *tail])
