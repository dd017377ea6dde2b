"""How much room text takes in a picture, without a font at hand, and how it is cut to what there is."""

from __future__ import annotations

import unicodedata
from typing import Final

from esper.karn.words import ABSENT

NAME, FACT = 12.5, 11.0
"""Sizes of letters, in pixels; names are bold."""
BOLD: Final = 1.14
"""About how much wider bold letters are."""
_NARROW, _WIDE = frozenset(" .,:;'|!()[]{}ijlIftr-/·"), frozenset("mwMWABCDGHKNOQRUVXY@%&—→")


def amount(value: int | None, digits: int = 3) -> str:
    """A count in little room: ``1,234``, ``55.3k``, ``2.36M``."""
    if value is None:
        return ABSENT
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        shown = f"{value / 10**power:.{digits}g}"
        if value >= 10_000 and float(shown) >= 1:
            return f"{float(shown):,.0f}{unit}" if "e" in shown else f"{shown}{unit}"
    return f"{value:,}"


def width_of(text: str, size: float) -> float:
    """About how wide ``text`` is, in pixels; names are bold."""
    return size * (BOLD if size == NAME else 1.0) * sum(map(_advance, text))


def fit(text: str, size: float, width: float) -> str:
    """``text`` cut to ``width`` pixels in letters of ``size``."""
    if width_of(text, size) <= width:
        return text
    taken, room = 0, width - width_of("…", size)
    for letter in text:
        room -= width_of(letter, size)
        if room < 0:
            break
        taken += 1
    return f"{text[:taken]}…"


def fit_path(path: str, width: float) -> str:
    """A name of modules cut to ``width`` pixels: outer ones go first."""
    names = path.split(".")
    for outer in range(len(names)):
        shown = "…" * (outer > 0) + ".".join(names[outer:])
        if width_of(shown, NAME) <= width:
            return shown
    return fit(path, NAME, width)


def _advance(letter: str) -> float:
    """About the width of a letter, in units of its size, in the widest of the usual fonts."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.36 if letter in _NARROW else 0.8 if letter in _WIDE else 0.62
