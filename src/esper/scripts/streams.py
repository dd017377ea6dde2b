"""Standard output and error of a program that goes on to its end whoever reads them, and in whatever encoding."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Final

from esper.nissa.console import ASCII_SIGNS

if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

_GONE: Final = (errno.EPIPE, errno.EIO)
"""The reader of a pipe went away, or a terminal did."""


class _LastingFile(io.FileIO):
    """A descriptor that leads nowhere once nobody reads it."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)


def settle() -> None:
    """Let ``print`` and all else that writes to the standard streams raise neither for a reader that has gone nor for
    what the terminal's encoding lacks, which is shown escaped."""
    sys.stdout, sys.stderr = lasting(sys.stdout), lasting(sys.stderr)


def lasting(stream: TextIO | None) -> TextIO:
    """The same stream, lasting. One that was closed from the beginning leads nowhere."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError):  # it is no file
        return stream
    raw = io.BufferedWriter(_LastingFile(descriptor, "w", closefd=False))
    each_line = stream.isatty() or stream is sys.stderr
    return io.TextIOWrapper(raw, stream.encoding, _PLAIN, line_buffering=each_line)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """For what an encoding lacks: signs that have a plain form as that, the rest escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end].translate(ASCII_SIGNS)
    return signs.encode("ascii", "backslashreplace").decode(), error.end


_PLAIN: Final = "esper.plain"
codecs.register_error(_PLAIN, _plain)
