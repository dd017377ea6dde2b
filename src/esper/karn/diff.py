"""Differences between snapshots, so that a frame carries only what changed.

A patch is plain data, one of

    ["=", value]                          put ``value`` here
    ["{}", {key: patch}, [gone, ...]]     change some keys, forget others
    ["[]", skip, {index: patch}, [new]]   forget the first ``skip`` items, change some, append others

so that a page applies it in a dozen lines. ``apply(plain(a), diff(a, b)) == plain(b)`` for any two snapshots.
"""

from __future__ import annotations

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
        return _fields(_known(old), _known(new))
    if isinstance(old, dict) and isinstance(new, dict):
        return _fields(old, new)
    if isinstance(old, list) and isinstance(new, list):
        return _items(old, new)
    return ["=", plain(new)]


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


def _known(struct: msgspec.Struct) -> dict[str, Any]:
    """Fields that are on the wire: neither unset nor at a default that is left out."""
    config = struct.__struct_config__
    names, defaults = struct.__struct_fields__, struct.__struct_defaults__
    missing = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) if config.omit_defaults else {}
    known = {}
    for name in names:
        value = getattr(struct, name)
        if value is msgspec.UNSET or (name in missing and _is_default(value, missing[name])):
            continue
        known[name] = value
    return known


def _is_default(value: Any, default: Any) -> bool:
    """As msgspec leaves defaults out: the same object, or an empty collection for one that is made."""
    if isinstance(default, msgspec._core.Factory):
        return type(value) is default.factory and not value
    return value is default


def _fields(old: dict[str, Any], new: dict[str, Any]) -> Patch:
    changed = {}
    for key, value in new.items():
        if key not in old:
            changed[str(key)] = ["=", plain(value)]
        elif (inner := diff(old[key], value)) is not None:
            changed[str(key)] = inner
    return ["{}", changed, [str(key) for key in old if key not in new]]


def _items(old: list[Any], new: list[Any]) -> Patch:
    """A list that slid (a feed) or one whose items changed in place; else a new list."""
    skip = _slide(old, new)
    if skip is not None:
        return ["[]", skip, {}, plain(new[len(old) - skip :])]
    if len(old) <= len(new):
        inner = {str(i): p for i, (a, b) in enumerate(zip(old, new, strict=False)) if (p := diff(a, b)) is not None}
        return ["[]", 0, inner, plain(new[len(old) :])]
    return ["=", plain(new)]


def _slide(old: list[Any], new: list[Any]) -> int | None:
    """How many items to drop from the front of ``old`` to make it a beginning of ``new``."""
    if not old or not new:
        return None
    for skip, item in enumerate(old):
        if item == new[0] and old[skip:] == new[: len(old) - skip]:
            return skip
    return None
