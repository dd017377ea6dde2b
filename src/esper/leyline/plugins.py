"""Third parties' parts: ``module:ATTRIBUTE`` where a name is asked for, or an entry point of their package."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Any

from esper.leyline.errors import UsageError


def load_attribute(kind: str, reference: str) -> Any:
    """What ``reference`` (``module:ATTRIBUTE``) names. Raises ``UsageError`` that says ``kind`` where it cannot be."""
    module, _, attribute = reference.partition(":")
    if not module or not attribute:
        raise UsageError(f"{kind} {reference!r}: module:ATTRIBUTE is needed")
    try:
        return attrgetter(attribute)(import_module(module))
    except ImportError as error:
        absent = error.name == module.partition(".")[0]
        hint = "; is the folder that holds it on PYTHONPATH?" if absent else ""
        raise UsageError(f"{kind} {reference!r}: cannot import {module!r}: {error}{hint}") from error
    except AttributeError as error:
        raise UsageError(f"{kind} {reference!r}: module {module!r} has no attribute {attribute!r}") from error


def plugins_in(group: str, built_in: Iterable[str] = ()) -> dict[str, EntryPoint]:
    """name -> entry point of the installed packages that have one in ``group``; ``built_in`` names are taken."""
    points = {point.name: point for point in entry_points(group=group)}
    return {name: points[name] for name in sorted(points) if name not in set(built_in)}
