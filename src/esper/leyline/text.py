r"""Foreign text made fit to be shown: what moves a cursor, colours a terminal or turns a line round is spelled out.

Names and reasons in a run directory come from whoever wrote it. A terminal obeys escape sequences in them, and marks
of direction or without width make a text read as another, so neither reaches a face raw: ``\x1b`` and ``\u202e``
stand in their place. Every face uses :func:`visible`, line by line.
"""

from __future__ import annotations

import re
from typing import Final

_HIDDEN: Final = (
    "\x00-\x1f\x7f-\x9f"  # C0 with the new line, DEL, C1
    "\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # no width
    "\ud800-\udfff"  # halves of characters, from undecodable file names
)
_ANY: Final = re.compile(f"[{_HIDDEN}]")
_IN_JSON: Final = re.compile(
    rf"(?P<kept>\\[^ubfr]|\\u(?!00[01]))|\\u00(?P<code>[01][0-9a-f])|\\(?P<short>[bfr])|[{_HIDDEN}]"
)
_SHORT: Final = {"b": "08", "f": "0c", "r": "0d"}
_CODES: Final = ("\\u00", *(f"\\{short}" for short in _SHORT))


def visible(text: object) -> str:
    """``text`` as one line in which every character is seen as what it is."""
    line = str(text)
    return line if line.isprintable() else _ANY.sub(lambda found: _spelled(found[0]), line)


def visible_json(text: bytes) -> bytes:
    """JSON text with :func:`visible` applied to its strings; their new lines and tabs stay."""
    whole = text.decode()
    if whole.isprintable() and not any(code in whole for code in _CODES):
        return text

    def change(found: re.Match[str]) -> str:
        if found["kept"]:
            return found[0]
        code = found["code"] or _SHORT.get(found["short"] or "")
        return f"\\\\x{code}" if code else "\\" + _spelled(found[0])

    return _IN_JSON.sub(change, whole).encode()


def ascii_json(text: bytes) -> bytes:
    """JSON text of the same value in which no character is hidden: they are escaped as JSON has it."""
    return _ANY.sub(_escaped, text.decode()).encode()


def _escaped(found: re.Match[str]) -> str:
    if found[0] == "\n":  # between values: in a string it is escaped already
        return found[0]
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
