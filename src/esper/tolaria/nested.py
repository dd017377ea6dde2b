"""States made of states.

A state is ``{"tensors": {name: tensor}, "plain": JSON-able}``. Joined, a part's tensors are named ``part/name``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper.leyline import DataError

State = dict[str, Any]


def plain_state(plain: Any) -> State:
    """A state without tensors."""
    return {"tensors": {}, "plain": plain}


def join(parts: Mapping[str, Mapping[str, Any]]) -> State:
    """One state of several. A part's name holds no ``/``."""
    joined: State = {"tensors": {}, "plain": {}}
    for name, part in parts.items():
        if "/" in name:
            raise ValueError(f"part {name!r} of a state: the name must not hold a slash")
        joined["tensors"].update({f"{name}/{key}": tensor for key, tensor in part["tensors"].items()})
        joined["plain"][name] = part["plain"]
    return joined


def split(state: Mapping[str, Any], *expected: str) -> dict[str, State]:
    """Undo of :func:`join`. Raises :class:`DataError` when the parts are not the ``expected`` ones (default: any)."""
    parts = {name: State(tensors={}, plain=plain) for name, plain in state["plain"].items()}
    if expected and set(parts) != set(expected):
        raise DataError(f"a saved state has the parts {', '.join(sorted(parts))}; {', '.join(expected)} are needed")
    for name, tensor in state["tensors"].items():
        part, _, key = name.partition("/")
        if part not in parts:
            raise DataError(f"saved tensor {name!r} belongs to no part of the state")
        parts[part]["tensors"][key] = tensor
    return parts
