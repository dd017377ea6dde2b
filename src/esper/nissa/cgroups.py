"""What memory a process's control groups leave it: in a container the host's figures say too much.

Both versions of the kernel's interface are read (``cgroup-v1/memory.rst``, ``cgroup-v2.rst``). In use is what cannot be
given back at once, the usage less the inactive part of the file cache, as container runtimes count it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit and what is left of it, in bytes."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class _Interface:
    """Where a version keeps its figures."""

    mount: str
    limit: str
    usage: str
    inactive: str


_V1 = _Interface("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Interface("", "memory.max", "memory.current", "inactive_file")


def memory_limit(root: Path, pid: int) -> MemoryLimit | None:
    """The limit with the least left of all that hold for ``pid``; ``None`` where none does or none can be read.

    ``root`` is the file system's root.
    """
    found = (_limit(folder, interface) for folder, interface in _groups(root, pid))
    return min((limit for limit in found if limit is not None), key=lambda limit: limit.available, default=None)


def _groups(root: Path, pid: int) -> Iterator[tuple[Path, _Interface]]:
    """The process's group and its parents: the limits of all of them hold.

    A container may see the mount of its own group but the path of the host's; then the mount is its group.
    """
    for line in read(root / "proc" / str(pid) / "cgroup").splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number != "0" and "memory" not in controllers.split(","):
            continue
        interface = _V2 if number == "0" else _V1
        mount = root / "sys/fs/cgroup" / interface.mount
        names = path.strip("/").split("/")
        for depth in range(len(names), -1, -1):
            yield mount.joinpath(*names[:depth]), interface


def _limit(folder: Path, interface: _Interface) -> MemoryLimit | None:
    limit, usage = (read(folder / name).strip() for name in (interface.limit, interface.usage))
    if not (limit.isdigit() and usage.isdigit()):
        return None
    lines = (line.split() for line in read(folder / "memory.stat").splitlines())
    inactive = next((int(words[1]) for words in lines if len(words) == 2 and words[0] == interface.inactive), 0)
    return MemoryLimit(int(limit), max(0, int(limit) - int(usage) + inactive))


def read(path: Path) -> str:
    """A file of the kernel's; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
