"""Closed segments, compressed: the same bytes in the seekable format of Zstandard.

``events-00001.jsonl.zst`` holds the bytes of ``events-00001.jsonl`` in frames of a mebibyte, and in a skippable frame
behind them a table of the frames' sizes (Zstandard's *seekable format*, version 0.1.0). So every place is found without
decompressing what is before it, and ``zstd -d`` gives the lines back. Offsets and checksums of a journal are those of
the bytes that were compressed: for a reader the two forms are one.

At every moment of a compression there is the one file or the other, whole, for a moment both: the compressed one gets
its name when all of it is on the disk and each frame was decompressed and compared, and only then the other goes.
"""

from __future__ import annotations

import bisect
import io
import itertools
import os
import secrets
import struct
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from esper.leyline import DataError
from esper.leyline.files import fsync_directory, open_regular, write_all

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIX: Final = ".zst"
_FRAME: Final = 1 << 20
"""Bytes that are decompressed to read one of them; a quarter of it costs a tenth of the ratio."""
_LARGEST_FRAME: Final = 64 << 20
_LEVEL: Final = 6
"""A journal shrinks to a ninth at 130 MB/s; level 3 to an eighth at 490, level 12 to a tenth at 70."""
_SKIPPABLE: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<II")
_FOOTER: Final = struct.Struct("<IBI")
_SKIPPABLE_MAGIC: Final = 0x184D2A5E
_SEEKABLE_MAGIC: Final = 0x8F92EAB1
_CHECKSUMS: Final = 0x80
"""Of the table's descriptor: each of its entries has a checksum, which is of no use here: each frame has its own."""
_RESERVED: Final = 0x7C


class JournalDamaged(DataError):
    """Committed bytes of a journal are not what was written. ``file`` and ``offset`` say where it begins."""

    def __init__(self, file: Path, offset: int, reason: str) -> None:
        super().__init__(f"{file}: journal damaged at byte {offset}: {reason}")
        self.file = file
        self.offset = offset
        self.reason = reason


def zstandard() -> Any:
    """The module. It is loaded only where there is something compressed, or to be."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def twin(path: Path) -> Path:
    """The name of the compressed form of a file."""
    return path.with_name(path.name + SUFFIX)


def open_segment(path: Path, *, salvage: bool = False) -> BinaryIO:
    """A segment for reading, its bytes as they were before compression: one that was compressed meanwhile, too.

    With ``salvage`` the bytes of a frame that is damaged are zeros, which pass for no batch. Raises as
    :func:`~esper.leyline.files.open_regular` does, and :class:`JournalDamaged` here and in reading.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        if path.suffix == SUFFIX:
            raise
        path = twin(path)
        file = open_regular(path)
    return file if path.suffix != SUFFIX else io.BufferedReader(Decompressed(file, path, salvage))


def stat_segment(path: Path) -> os.stat_result:
    """Of the file that a segment is in now, which may have been compressed meanwhile. Raises ``OSError``."""
    try:
        return path.stat()
    except FileNotFoundError:
        return twin(path).stat()


def size_of(path: Path) -> int:
    """Bytes of a segment as they were before compression; where that cannot be told, those of its file."""
    if path.suffix != SUFFIX:
        with suppress(FileNotFoundError):
            return path.stat().st_size
    try:
        with open_segment(path) as file:
            return file.seek(0, os.SEEK_END)
    except DataError:
        return stat_segment(path).st_size


class Decompressed(io.RawIOBase):
    """The bytes in a compressed file. See :func:`open_segment`."""

    def __init__(self, file: BinaryIO, path: Path, salvage: bool) -> None:
        self._file, self._path, self._salvage = file, path, salvage
        self._at = 0
        self._held: tuple[int, bytes] = (-1, b"")
        try:
            sizes = _read_table(file)
        except ValueError as wrong:
            file.close()
            raise JournalDamaged(path, 0, f"it cannot be decompressed: {wrong}") from None
        self._places = [0, *itertools.accumulate(packed for packed, _ in sizes)]
        self._starts = [0, *itertools.accumulate(size for _, size in sizes)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        number = bisect.bisect_right(self._starts, self._at) - 1
        if number == len(self._starts) - 1:
            return 0
        if self._held[0] != number:
            self._held = (number, self._frame(number))
        view = memoryview(buffer).cast("B")
        part = self._held[1][self._at - self._starts[number] :][: len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _frame(self, number: int) -> bytes:
        start, wanted = self._starts[number], self._starts[number + 1] - self._starts[number]
        self._file.seek(self._places[number])
        packed = self._file.read(self._places[number + 1] - self._places[number])
        zstd = zstandard()
        with suppress(zstd.ZstdError):
            reading = zstd.ZstdDecompressor()
            content: bytes = reading.decompress(packed, wanted + 1)
            if len(content) == wanted and reading.eof and not reading.unused_data:
                return content
        if self._salvage:
            return bytes(wanted)
        raise JournalDamaged(self._path, start, f"frame {number + 1} cannot be decompressed")


def _read_table(file: BinaryIO) -> list[tuple[int, int]]:
    """Compressed and decompressed size of each frame. Raises ``ValueError`` where that does not fit the file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _FOOTER.size))
    footer = file.read(_FOOTER.size)
    if len(footer) < _FOOTER.size or (found := _FOOTER.unpack(footer))[2] != _SEEKABLE_MAGIC:
        raise ValueError("there is no table of frames at its end")
    count, descriptor, _ = found
    entry = _ENTRY.size + (4 if descriptor & _CHECKSUMS else 0)
    size = count * entry + _FOOTER.size
    start = length - size - _SKIPPABLE.size
    if descriptor & _RESERVED or start < 0:
        raise ValueError("its table of frames is damaged")
    file.seek(start)
    table = file.read(_SKIPPABLE.size + count * entry)
    if _SKIPPABLE.unpack_from(table) != (_SKIPPABLE_MAGIC, size):
        raise ValueError("its table of frames is damaged")
    sizes = [_ENTRY.unpack_from(table, _SKIPPABLE.size + entry * number) for number in range(count)]
    if sum(packed for packed, _ in sizes) != start or max((plain for _, plain in sizes), default=0) > _LARGEST_FRAME:
        raise ValueError("its table of frames does not fit it")
    return sizes


def compress(path: Path) -> Generator[None, None, None]:
    """Put the compressed form of a file that is not written any more in its place, a frame a step.

    For who holds the lock of its folder. Left early, or on an error (``OSError``, ``DataError``, ``MemoryError``), the
    file stays.
    """
    zstd = zstandard()
    temporary = path.with_name(f".{path.name}{SUFFIX}.{secrets.token_hex(4)}.tmp")
    try:
        with open_regular(path) as file:
            about = os.fstat(file.fileno())
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, about.st_mode & 0o777)
            try:
                sizes = []
                while chunk := file.read(_FRAME):
                    packed = _packed(chunk, zstd)
                    write_all(descriptor, packed)
                    sizes.append((len(packed), len(chunk)))
                    yield
                write_all(descriptor, _table(sizes))
                # when it was written is when the run last said something
                os.utime(descriptor, ns=(about.st_atime_ns, about.st_mtime_ns))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if sum(size for _, size in sizes) != path.stat().st_size:
            raise DataError(f"{path}: it was written to while it was compressed")
        yield
        os.replace(temporary, twin(path))
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)
    os.unlink(path)
    fsync_directory(path.parent)


def _packed(chunk: bytes, zstd: Any) -> bytes:
    options = {zstd.CompressionParameter.compression_level: _LEVEL, zstd.CompressionParameter.checksum_flag: 1}
    try:
        packed: bytes = zstd.compress(chunk, options=options)
        same = zstd.decompress(packed) == chunk
    except zstd.ZstdError as wrong:
        raise DataError(f"it cannot be compressed: {wrong}") from None
    if not same:
        raise DataError("what was compressed is not what is decompressed")
    return packed


def _table(sizes: list[tuple[int, int]]) -> bytes:
    entries = b"".join(_ENTRY.pack(*each) for each in sizes)
    footer = _FOOTER.pack(len(sizes), 0, _SEEKABLE_MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(entries) + len(footer)) + entries + footer
