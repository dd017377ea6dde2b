"""What the integrations share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esper.kasmina.structure import tensors


def examples_in(batch: Any) -> int:
    """Length of the first tensor that has one; 1 where none has."""
    return next((len(tensor) for _, tensor in tensors(batch) if tensor.ndim > 0), 1)


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, the object ``owner`` has ``value`` of its own under ``name``, in front of what its class has."""
    own = vars(owner)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            own.pop(name, None)
        else:
            own[name] = before
