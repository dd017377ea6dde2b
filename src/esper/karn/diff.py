"""Differences between snapshots, so that a frame carries only what changed.

A patch is one of

    ["=", value]                          put ``value`` here
    ["{}", {key: patch}, [gone, ...]]     change some keys, forget others
    ["[]", skip, {index: patch}, [new]]   forget the first ``skip`` items, change some, append others

so that a page applies it in a dozen lines. Values are parts of the new snapshot as they are: the encoder takes them.
``apply(plain(a), plain(diff(a, b))) == plain(b)`` for any two snapshots.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

Patch = list[Any]


def plain(value: Any) -> Any:
    """A snapshot (or any part of it) as the page sees it: dicts, lists, strings, numbers."""
    return msgspec.to_builtins(value, str_keys=True)


def diff(old: Any, new: Any) -> Patch | None:
    """Patch from ``old`` to ``new``; ``None`` when they are equal. Parts that are the same object cost nothing."""
    if old is new or (type(old) is type(new) and old == new):
        return None
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        return _struct(old, new)
    if isinstance(old, dict) and isinstance(new, dict):
        return _fields(old, new)
    if isinstance(old, list) and isinstance(new, list):
        return _items(old, new)
    return ["=", new]


def apply(value: Any, patch: Patch | None) -> Any:
    """``value`` with ``patch`` applied, as a new object; parts that the patch leaves alone are shared."""
    if patch is None:
        return value
    match patch[0]:
        case "=":
            return patch[1]
        case "{}":
            changed = {key: apply(value.get(key), inner) for key, inner in patch[1].items()}
            gone = set(patch[2])
            return {key: item for key, item in (value | changed).items() if key not in gone}
        case "[]":
            kept = value[patch[1] :]
            for index, inner in patch[2].items():
                kept[int(index)] = apply(kept[int(index)], inner)
            return kept + patch[3]
    raise ValueError(f"not a patch: {patch!r}")


_NO_DEFAULT = object()


@functools.cache
def _shape(struct: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """Names of the fields, each with the default that is left out on the wire."""
    names, defaults = struct.__struct_fields__, struct.__struct_defaults__
    if not struct.__struct_config__.omit_defaults:
        defaults = ()
    return tuple(zip(names, (*[_NO_DEFAULT] * (len(names) - len(defaults)), *defaults), strict=True))


def _is_sent(value: Any, default: Any) -> bool:
    """As msgspec leaves fields out: the default itself, or an empty collection for a default that is made."""
    if isinstance(default, msgspec._core.Factory):
        return type(value) is not default.factory or bool(value)
    return value is not default


def _struct(old: msgspec.Struct, new: msgspec.Struct) -> Patch:
    changed, gone = {}, []
    for name, default in _shape(type(new)):
        before, now = getattr(old, name), getattr(new, name)
        if before is now:
            continue
        was_sent = _is_sent(before, default)
        if not _is_sent(now, default):
            if was_sent:
                gone.append(name)
        elif not was_sent:
            changed[name] = ["=", now]
        elif (inner := diff(before, now)) is not None:
            changed[name] = inner
    return ["{}", changed, gone]


def _fields(old: dict[str, Any], new: dict[str, Any]) -> Patch:
    changed = {}
    for key, value in new.items():
        if key not in old:
            changed[str(key)] = ["=", value]
        elif (inner := diff(old[key], value)) is not None:
            changed[str(key)] = inner
    return ["{}", changed, [str(key) for key in old if key not in new]]


def _items(old: list[Any], new: list[Any]) -> Patch:
    """A list that slid (a feed) or one whose items changed in place; else a new list, also where they are bare."""
    skip = _slide(old, new)
    if skip is not None:
        return ["[]", skip, {}, new[len(old) - skip :]]
    if len(old) <= len(new) and isinstance(new[0], (msgspec.Struct, dict, list)):
        inner = {str(i): p for i, (a, b) in enumerate(zip(old, new, strict=False)) if (p := diff(a, b)) is not None}
        return ["[]", 0, inner, new[len(old) :]]
    return ["=", new]


def _slide(old: list[Any], new: list[Any]) -> int | None:
    """How many items to drop from the front of ``old`` to make it a beginning of ``new``."""
    if not old or not new:
        return None
    for skip, item in enumerate(old):
        if item == new[0] and old[skip:] == new[: len(old) - skip]:
            return skip
    return None
