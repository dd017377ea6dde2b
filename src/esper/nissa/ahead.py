"""Reading a long journal ahead: another process checks and decodes it while this one works on what came before.

The other process only does earlier what the reader would do here. Where it stops, for whatever reason (the journal's
end, damage, a process that cannot be started), the reader goes on from there and meets the reason itself.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from esper.leyline import EsperError, TelemetryEvent
from esper.nissa.reader import Position, read_journal

_SIZE: Final = 4
"""Bytes of the number that says how long a message is."""
_PIPE: Final = 1 << 20
"""Bytes in flight. They must be some batches: with less than one, the two processes would wait for each other."""


class DecodedBatch(msgspec.Struct, array_like=True, frozen=True):
    """A committed batch with the events that stand, as msgpack, which keeps NaN and infinities."""

    start: Position
    end: Position
    packed: list[memoryview]

    def pieces(self) -> Iterator[list[TelemetryEvent]]:
        """The events, a few at a time, as :meth:`~esper.nissa.segments.Batch.pieces` has them."""
        return map(_events.decode, self.packed)


_events: Final = msgspec.msgpack.Decoder(list[TelemetryEvent])
_batch: Final = msgspec.msgpack.Decoder(DecodedBatch)
_encode: Final = msgspec.msgpack.Encoder().encode


def read_ahead(directory: Path, start: Position | None = None) -> Iterator[DecodedBatch]:
    """Batches from ``start`` on, as far as the other process gets; it waits when it is a pipe's length ahead."""
    place = [] if start is None else [str(start.segment), str(start.offset), str(start.crc32)]
    command = [sys.executable, "-P", "-m", "esper.nissa.ahead", str(directory.absolute()), *place]
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, pipesize=_PIPE)
    except OSError:
        return
    with process:
        assert process.stdout is not None
        try:
            while (message := _read(process.stdout)) is not None:
                yield _batch.decode(message)
        finally:
            process.kill()


def _read(pipe: IO[bytes]) -> bytes | None:
    """The next message; ``None`` when the other side stopped, if need be in the middle of one."""
    size = int.from_bytes(pipe.read(_SIZE), "little")
    message = pipe.read(size) if size else b""
    return message if size and len(message) == size else None


def main(arguments: list[str]) -> None:
    """The other process: write the batches to standard output."""
    directory, *place = arguments
    start = Position(*map(int, place)) if place else None
    gc.disable()  # events hold no cycles, and looking for some takes a tenth of the time
    with contextlib.suppress(EsperError, OSError, OverflowError):
        for batch in read_journal(directory).batches(start):
            pieces = [memoryview(_encode(piece)) for piece in batch.pieces()]
            message = _encode(DecodedBatch(batch.start, batch.end, pieces))
            sys.stdout.buffer.write(len(message).to_bytes(_SIZE, "little"))
            sys.stdout.buffer.write(message)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
