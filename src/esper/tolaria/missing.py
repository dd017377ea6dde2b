"""A rank that is gone: what a backend's error says of it, and which it is, as far as this machine can know."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch.distributed as dist

from esper.leyline import EsperError
from esper.nissa.vitals import process_stat

_GLOO: Final = re.compile(r"^\[(?!enforce)[^]]*\bgloo\b[^]]*\] ")
"""How gloo begins what it says of a connection; of arguments that do not fit it says ``[enforce fail at ...]``."""
_UNANSWERED: Final = re.compile(
    r"remote process exited|ncclRemoteError|timed? ?out|Broken pipe|failed to (?:recv|send)"
    r"|connection (?:was likely )?(?:closed|reset|refused)|(?:host|network) is unreachable|no route to host",
    re.IGNORECASE,
)
"""How others say that a connection is gone, or that they waited in vain; the same class of errors is raised for a wrong
call, and for a GPU's own."""
_BEGAN: Final = 19
"""When a process began, among the fields of its ``stat``."""
_PATIENCE: Final = 1.0
"""Seconds in which a process that has closed its connections is gone."""


class RankLost(EsperError):
    """Another rank is gone, or does not answer."""

    told = False
    """Whether it has been said on standard error."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process among those of all machines, to be asked after."""

    machine: str
    """Its processes have numbers of their own; empty where that cannot be known."""
    pid: int
    began: str

    @classmethod
    def this(cls) -> Self:
        """This one."""
        pid = os.getpid()
        stat = process_stat(pid)
        return cls(_machine(), pid, "" if stat is None else stat[_BEGAN])

    def gone(self) -> bool:
        """Whether it is known to have ended."""
        if not self.machine or self.machine != _machine():
            return False
        stat = process_stat(self.pid)
        return stat is None or stat[0] in "ZX" or stat[_BEGAN] != self.began


def rank_lost(error: BaseException, rank: int, count: int, processes: Sequence[Process]) -> RankLost | None:
    """What it says of another rank that does not answer, in one line, with those that are known to be gone; ``None``
    where it says nothing of that. ``processes``: of all, by rank. Where it may be something else, it is the cause.
    """
    by_gloo = isinstance(error, RuntimeError) and bool(_GLOO.match(str(error)))
    by_another = dist.is_available() and isinstance(error, dist.DistError)
    if not by_gloo and not by_another:
        return None
    says = by_gloo or bool(_UNANSWERED.search(str(error)))
    others = [each for each in range(count) if each != rank]
    gone = _gone(processes, others)
    if not says and not gone:
        return None
    if gone:
        ended = f"process {processes[gone[0]].pid} is" if len(gone) == 1 else "processes are"
        lost = f"{ranks_named(gone)}, whose {ended} gone"
    else:
        lost = ranks_named(others) if len(others) == 1 else "another one"
    why = re.sub(r"^\[[^]]*\] ", "", str(error).strip()).splitlines() or [type(error).__name__]
    found = RankLost(f"rank {rank} of {count} has lost {lost} ({why[0].partition('. ')[0]})")
    found.__cause__ = None if by_gloo or (says and gone) else error
    return found


def _gone(processes: Sequence[Process], ranks: Sequence[int]) -> list[int]:
    """Those that are gone. A process closes its connections before it has ended."""
    until = time.monotonic() + _PATIENCE
    while True:
        found = [rank for rank in ranks if rank < len(processes) and processes[rank].gone()]
        if found or time.monotonic() > until:
            return found
        time.sleep(0.02)


def ranks_named(ranks: Sequence[int]) -> str:
    """``rank 1``, ``ranks 0, 2``"""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _machine() -> str:
    """This start of this system, and the numbers that its processes have here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
