"""Files that are whole or not there, whatever happens in between, and that are what they are taken for.

A run directory may come from anywhere. So only regular files are read, up to a size, and what is in a :class:`Folder`
is opened, written and removed by its name in the folder that is held open: no link is followed, and none can be put
there in between. A file with a second name (a hard link) is replaced, never written into.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from esper.leyline.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

sync_data = getattr(os, "fdatasync", os.fsync)
"""Wait until a file's contents are on the disk."""

MANIFEST_BYTES: Final = 16 << 20
"""Most bytes of a file of settings or the like: a person can still read it."""
TENSOR_BYTES: Final = 1 << 40
"""Most bytes of a file of tensors."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""A pipe that nobody writes to is opened at once, and then found to be no regular file."""
_GROWS: Final = 1 << 16
"""Bytes that a file may grow by while it is read."""
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte; one call unless the system takes less. Raises ``OSError``."""
    written = os.write(descriptor, data)
    if written < len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def fsync_directory(directory: Path) -> None:
    """Wait until the names in ``directory`` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: str | Path, *, follow: bool = False) -> BinaryIO:
    """The regular file at ``path`` for reading.

    ``follow`` is for a path that a person gave: it may be a link. Raises ``DataError`` for a link otherwise, and for
    anything but a regular file; ``OSError`` where it cannot be opened.
    """
    return _open(path, path, follow, None)


def read_regular(path: str | Path, most: int, *, follow: bool = False) -> bytes:
    """The contents of a regular file; see :func:`open_regular`. Raises ``DataError`` for more than ``most`` bytes."""
    return _read(open_regular(path, follow=follow), path, most)


def _open(path: str | Path, name: str | Path, follow: bool, within: int | None) -> BinaryIO:
    """``name`` in the folder that the descriptor ``within`` is of; ``path`` is what it is called."""
    try:
        descriptor = os.open(name, _READ if follow else _READ | os.O_NOFOLLOW, dir_fd=within)
    except OSError:
        if not follow and _is_link(name, within):
            raise _linked(path) from None
        raise
    with _naming(path):
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    if not regular:
        os.close(descriptor)
        raise DataError(f"{path}: not a regular file")
    return io.BufferedReader(_Named(descriptor, path))


class _Named(io.FileIO):
    """Says which file it is where reading fails."""

    def __init__(self, descriptor: int, path: str | Path) -> None:
        super().__init__(descriptor, "rb")
        self._path = path

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        with _naming(self._path):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _naming(self._path):
            return super().readall()


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _read(file: BinaryIO, path: str | Path, most: int) -> bytes:
    with file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(most, size + _GROWS) + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise DataError(f"{path}: {max(size, len(content))} bytes; at most {most} are read")
    return content


def _is_link(name: str | Path, within: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _linked(path: str | Path) -> DataError:
    return DataError(f"{path}: a link; inside a run directory none is followed. Put what it points to in its place")


class Folder:
    """A folder that is held open; ``path`` is for what is said about it. Names in it are never followed if links."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | Path, *, follow: bool = True) -> Folder:
        """The folder at ``path``; with ``follow`` it may be a link. Raises ``DataError`` for one otherwise."""
        return cls(Path(path), _open_folder(path, follow, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self._descriptor)

    def is_folder(self, name: str) -> bool:
        """Whether ``name`` is a folder, and not a link to one."""
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def make(self, name: str) -> None:
        """Make a folder. Raises ``FileExistsError``."""
        os.mkdir(name, dir_fd=self._descriptor)

    def folder(self, name: str, *, make: bool = False) -> Folder:
        """The folder ``name`` in it; made where it is missing and ``make`` says so. Raises ``DataError`` for a link."""
        if make:
            with suppress(FileExistsError):
                self.make(name)
        return Folder(self.path / name, _open_folder(name, False, self._descriptor, self.path / name))

    def read(self, name: str, most: int) -> bytes:
        """See :func:`read_regular`."""
        return _read(_open(self.path / name, name, False, self._descriptor), self.path / name, most)

    def create(self, name: str, data: Iterable[bytes | memoryview]) -> None:
        """Write a file that is not there yet, piece by piece, and wait until its contents are on the disk."""
        with _naming(self.path / name):
            descriptor = os.open(name, _NEW, 0o644, dir_fd=self._descriptor)
            try:
                for piece in data:
                    write_all(descriptor, piece)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Replace ``name`` by ``data``: at every moment, and after a power cut, it is the old file or the new one."""
        temporary = f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            self.create(temporary, [data])
            os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._descriptor)
            raise
        self.sync()

    def rename(self, old: str, new: str) -> None:
        """Give what is in it another name."""
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str, *, ignore_errors: bool = False) -> None:
        """Remove a folder with everything in it; what links in it point to stays."""
        shutil.rmtree(name, ignore_errors=ignore_errors, dir_fd=self._descriptor)

    def sweep(self) -> None:
        """Remove what writes that were killed have left in it. For whoever alone writes in it."""
        for name in self.names():
            if _TEMPORARY.fullmatch(name):
                os.unlink(name, dir_fd=self._descriptor)

    def lock(self) -> None:
        """Take the lock of whoever writes in it, until it is closed. Raises ``BlockingIOError`` if another has it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # some network file systems have no locks

    def sync(self) -> None:
        """Wait until the names in it are on the disk."""
        with _naming(self.path):
            os.fsync(self._descriptor)


def _open_folder(name: str | Path, follow: bool, within: int | None, path: Path | None = None) -> int:
    try:
        return os.open(name, _FOLDER if follow else _FOLDER | os.O_NOFOLLOW, dir_fd=within)
    except OSError:
        if not follow and _is_link(name, within):
            raise _linked(path or name) from None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """:meth:`Folder.write` for a path that a person gave; the last name in it is replaced even if it is a link."""
    with Folder.open(path.parent) as folder:
        folder.write(path.name, data)
