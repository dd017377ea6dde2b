"""One frame down the WebSocket: a header, JSON (whole or as a patch), and the board's columns.

    bytes 0..3    magic "EOW1"
    uint32        sequence of the frame for this client, from 1
    uint32        frames that this client missed so far, because it was slow (a newer one took their place)
    uint32        length of the JSON in bytes
    uint32        environments E and (uint32) slots S of the columns; both 0 when they did not change
    uint32        1 when the JSON is whole, 0 when it is a patch to the last frame
    uint32        0
    JSON          padded with spaces to a multiple of 8 bytes
    columns       see :mod:`esper.karn.web.columns`

All numbers are little-endian. The JSON is ``{"snapshot", "detail", "mode"}``, or a patch to such an object
(:mod:`esper.karn.diff`).
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgspec

from esper.karn.diff import diff
from esper.karn.schema import EnvironmentDetail, Snapshot

MAGIC: Final = b"EOW1"
_HEADER: Final = struct.Struct("<4s7I")
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


class Mode(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the client sees now or another time."""

    kind: str
    """``live`` or ``replay``."""
    playing: bool = False
    speed: float = 1.0
    note: str = ""
    """What the last request of this client could not do, in words."""


class View(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that one client sees."""

    snapshot: Snapshot
    mode: Mode
    detail: EnvironmentDetail | None = None


class Board(NamedTuple):
    """Packed columns."""

    environments: int
    slots: int
    data: bytes


NO_BOARD: Final = Board(0, 0, b"")


def encode_frame(sequence: int, missed: int, before: View | None, view: View, board: Board = NO_BOARD) -> bytes:
    """The frame that takes a client from ``before`` (``None`` = nothing yet) to ``view``."""
    whole = before is None
    body = _ENCODER.encode(view) if before is None else msgspec.json.encode(diff(before, view))
    body += b" " * (-len(body) % 8)
    header = _HEADER.pack(
        MAGIC, sequence, missed & 0xFFFFFFFF, len(body), board.environments, board.slots, int(whole), 0
    )
    return header + body + board.data


class Frame(NamedTuple):
    """A frame taken apart, for tests and other clients."""

    sequence: int
    missed: int
    whole: bool
    content: Any
    board: Board


def decode_frame(data: bytes) -> Frame:
    """Undo of :func:`encode_frame`. Raises ``ValueError`` for anything else."""
    magic, sequence, missed, length, environments, slots, whole, _ = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not a frame: it starts with {magic!r}")
    end = _HEADER.size + length
    content = msgspec.json.decode(data[_HEADER.size : end])
    return Frame(sequence, missed, bool(whole), content, Board(environments, slots, data[end:]))
