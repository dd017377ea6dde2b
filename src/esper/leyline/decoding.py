"""What comes from a file or a socket becomes data here, once, within limits, or one typed error.

The limits keep what was decoded harmless to whoever walks it: no deeper than a recursion goes, no longer than memory
has room for, no number that a later step cannot hold.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, TypeVar, overload

import msgspec

from esper.leyline.errors import DataError

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Most arrays and objects around a value. What Esper writes stays below a third of it."""
MOST_TOLD: Final = 300
"""Most characters of a message about what could not be decoded."""

_OPENING: Final = bytes(set(range(256)) - set(b"[{\n"))
_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def too_deep(text: bytes, most: int = MAX_DEPTH) -> bool:
    """Whether JSON text has more than ``most`` arrays and objects around a value."""
    opened = text.translate(None, _OPENING)
    if len(opened) <= most:
        return False
    depth = deepest = 0
    for mark in _STRING.sub(b"", text).translate(None, _BRACKETS):
        if mark in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest > most


def lines_too_deep(lines: bytes, most: int = MAX_DEPTH) -> bool:
    """:func:`too_deep` for any of many lines: a twentieth of the time that it takes to decode them."""
    longest = max(map(len, lines.translate(None, _OPENING).split(b"\n")))
    return longest > most and any(too_deep(line, most) for line in lines.split(b"\n"))


def value_too_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether a decoded value has more than ``most`` lists and mappings around another."""
    level = [value]
    for _ in range(most):
        level = [
            item
            for each in level
            if isinstance(each, dict | list | tuple)
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list | tuple)
        ]
        if not level:
            return False
    return True


@overload
def decode_json(text: bytes | str, where: str | Path, of: type[T]) -> T: ...
@overload
def decode_json(text: bytes | str, where: str | Path) -> Any: ...
def decode_json(text: bytes | str, where: str | Path, of: Any = Any) -> Any:
    """``text`` as ``of``. Raises ``DataError`` with ``where`` it is from for what is no JSON, too deep or no ``of``."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if too_deep(data):
        raise DataError(f"{where}: nested deeper than {MAX_DEPTH} levels")
    try:
        return msgspec.json.decode(data, type=of)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {told(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not JSON: {told(error)}") from None


def safetensors_header(content: bytes, where: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ``DataError``."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise DataError(f"{where}: no safetensors file, or a truncated one")
    header = decode_json(content[8 : 8 + length], where, dict[str, Any])
    return as_type(header.get("__metadata__", {}), where, dict[str, str])


def as_type(value: Any, where: str | Path, of: type[T]) -> T:
    """A decoded value as ``of``. Raises ``DataError`` with ``where`` it is from."""
    try:
        return msgspec.convert(value, of)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {told(error)}") from None


def told(what: object) -> str:
    """In words, cut where they are many."""
    text = str(what)
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}…"
