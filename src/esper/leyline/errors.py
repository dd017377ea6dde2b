"""Errors that a person caused and can mend: shown as one line, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final


class EsperError(Exception):
    """Something that a person can mend. The message says what was given, where, and what is legal."""

    exit_code = 1
    """Status with which the command line ends."""


class UsageError(EsperError):
    """What was asked for cannot be: an unknown name, a count out of range, a used directory."""

    exit_code = 2


class DataError(EsperError):
    """Data that is missing, damaged, non-finite or of the wrong shape."""


class MissingExtraError(UsageError):
    """A feature whose optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': in a checkout of Esper, pip install '.[{extra}]'")


LONGEST: Final = 200
"""Characters of what was given that an error repeats."""


def unknown(kind: str, given: str, legal: Iterable[str]) -> UsageError:
    """``unknown slot 'layer9'; did you mean 'layer3'? legal: ...``"""
    names = sorted(legal)
    given = given if len(given) <= LONGEST else f"{given[:LONGEST]}…"
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return UsageError(f"unknown {kind} {given!r}{hint} legal: {', '.join(names) or '(none)'}")
