"""One frame down the WebSocket: a header, JSON (whole or as a patch), and the board's columns.

    bytes 0..3    magic "EOW1"
    uint32        sequence of the frame for this client, from 1
    uint32        frames that this client missed so far, because it was slow (a newer one took their place)
    uint32        length of the JSON in bytes
    uint32        environments E and (uint32) slots S of the columns; both 0 when they did not change
    uint32        1 when the JSON is whole, 0 when it is a patch to the last frame
    uint32        environments R whose columns changed; 0 when the columns are whole
    JSON          padded with spaces to a multiple of 8 bytes
    int32         with R > 0: places of those environments [R]
    columns       of R environments, or of all E; see :meth:`esper.karn.web.columns.BoardColumns.pack`

All numbers are little-endian. The JSON is ``{"snapshot", "detail", "mode"}``, or a patch to such an object
(:mod:`esper.karn.diff`).
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from esper.karn.diff import diff
from esper.karn.schema import EnvironmentDetail, Snapshot
from esper.karn.web.columns import BoardColumns, unpack
from esper.leyline.text import visible_json

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


class Sight(NamedTuple):
    """What one client was sent last, or is sent next."""

    view: View
    board: BoardColumns


def encode_frame(sequence: int, missed: int, before: Sight | None, now: Sight) -> bytes:
    """The frame that takes a client from ``before`` (``None`` = nothing yet) to ``now``."""
    view, board = now
    if before is None:
        body, changed = _ENCODER.encode(view), None
    else:
        body, changed = msgspec.json.encode(diff(before.view, view)), board.changed(before.board)
    environments, slots = board.stage.shape
    if changed is None:
        rows, columns = 0, board.pack()
    elif len(changed):
        rows, columns = len(changed), changed.astype(np.int32).tobytes() + board.rows(changed).pack()
    else:
        environments = slots = rows = 0
        columns = b""
    body = visible_json(body)
    body += b" " * (-len(body) % 8)
    header = _HEADER.pack(
        MAGIC, sequence, missed & 0xFFFFFFFF, len(body), environments, slots, int(before is None), rows
    )
    return header + body + columns


class Frame(NamedTuple):
    """A frame taken apart, for tests and other clients."""

    sequence: int
    missed: int
    whole: bool
    content: Any
    board: BoardColumns | None
    """The columns after the frame; ``None`` before any were told."""
    rows: int
    """How many environments' columns it carries."""


def decode_frame(data: bytes, before: BoardColumns | None = None) -> Frame:
    """Undo of :func:`encode_frame`, with the columns ``before`` it. Raises ``ValueError`` for anything else."""
    magic, sequence, missed, length, environments, slots, whole, rows = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError(f"not a frame: it starts with {magic!r}")
    end = _HEADER.size + length
    content = msgspec.json.decode(data[_HEADER.size : end])
    board = before
    if rows and before is not None:
        places = np.frombuffer(data, np.int32, rows, end)
        board = BoardColumns(*(column.copy() for column in before))
        for column, new in zip(board, unpack(data[end + places.nbytes :], rows, slots), strict=True):
            column[places] = new
    elif environments:
        board = unpack(data[end:], environments, slots)
    return Frame(sequence, missed, bool(whole), content, board, rows or environments)
