"""What comes from a file or a socket becomes data here, once, within limits, or one typed error.

The limits keep what was decoded harmless to whoever walks it: no deeper than a recursion goes, no longer than memory
has room for, no number that a later step cannot hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar, overload

import msgspec

from esper.leyline.errors import DataError

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Most arrays and objects around a value. What Esper writes stays below a third of it."""
MAX_DIGITS: Final = 38
"""Most digits of a whole number: what 128 bits hold, and a float has room for."""
MOST_TOLD: Final = 300
"""Most characters of a message about what could not be decoded."""

_OPENING: Final = bytes(set(range(256)) - set(b"[{\n"))
_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG: Final = b"0" * (MAX_DIGITS + 1)
_STRIDE: Final = 9
_SAMPLED: Final = b"0" * (len(_LONG) // _STRIDE)
"""What is left of so many digits where only each ninth byte is looked at."""
_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def fault(text: bytes) -> str:
    """Which limit JSON text is beyond, in words; empty where it is within."""
    if _LONG in text.translate(_DIGITS) and _LONG in _outside_strings(text).translate(_DIGITS):
        return f"a number of more than {MAX_DIGITS} digits"
    if len(text.translate(None, _OPENING)) <= MAX_DEPTH:
        return ""
    return f"nested deeper than {MAX_DEPTH} levels" if _too_deep(_outside_strings(text)) else ""


def _outside_strings(text: bytes) -> bytes:
    """What no string holds, of text that is JSON as far as a decoder would read it."""
    return b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])


def _too_deep(text: bytes) -> bool:
    marks = left = text.translate(None, _BRACKETS)
    # each step takes one or two of the innermost levels off, far faster than looking at each mark
    for _ in range(MAX_DEPTH // 2):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if not left:
            return False
    depth = deepest = 0
    for mark in marks:
        depth += 1 if mark in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def fault_in_lines(lines: bytes) -> str:
    """:func:`fault` of any of many lines: a twelfth of the time that it takes to decode them."""
    longest = max(map(len, lines.translate(None, _OPENING).split(b"\n")))
    if longest <= MAX_DEPTH:
        # first a ninth of the bytes, in which so many digits must leave some in a row
        if _SAMPLED not in lines[::_STRIDE].translate(_DIGITS) or _LONG not in lines.translate(_DIGITS):
            return ""
    return next(filter(None, map(fault, lines.split(b"\n"))), "")


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
    if beyond := fault(data):
        raise DataError(f"{where}: {beyond}")
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
