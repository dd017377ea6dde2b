"""Whether a run goes on, judged here: by when its journal grew, and on its own machine by its process.

The clock of the machine that trains may be an hour off. Its times are taken as they are, unless they lie ahead of this
clock, or the journal grew just now, here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from esper.nissa.manifest import Manifest, host_digest
from esper.nissa.vitals import process_stat

GROWING: Final = 60.0
"""Seconds within which a journal that grew is one that grows."""
_AHEAD: Final = 1.0


def heard(last_time: float, grew: float | None, now: float) -> float:
    """Seconds since a run last said something: by its own clock ``last_time``, in a journal that ``grew`` then by the
    clock that ``now`` is of."""
    age = now - last_time
    written = None if grew is None else now - grew
    if written is not None and (age < -_AHEAD or 0.0 <= written < min(GROWING, age)):
        return max(0.0, written)
    return max(0.0, age)


def grown(segments: list[Path]) -> float | None:
    """When the last of these files was written to, as the file system has it."""
    try:
        return segments[-1].stat().st_mtime if segments else None
    except OSError:
        return None


def goes_on(manifest: Manifest) -> bool | None:
    """Whether the process that writes the run is there; ``None`` where that cannot be told: on another machine."""
    pid = manifest.details.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0 or manifest.host.digest != host_digest():
        return None
    resumes = manifest.details.get("resumes")
    moments = [each.get("time") for each in resumes if isinstance(each, dict)] if isinstance(resumes, list) else []
    began = next((moment for moment in reversed(moments) if isinstance(moment, float)), manifest.created)
    born = _born(pid)
    return born is not None and born <= began + GROWING


def _born(pid: int) -> float | None:
    """When the process of that number was started, in seconds since 1970; ``None`` where there is none."""
    if (stat := process_stat(pid)) is None:
        return None
    try:
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        since_boot = int(stat[19]) / os.sysconf("SC_CLK_TCK")
        return None if stat[0] == "Z" else time.time() - (uptime - since_boot)
    except (OSError, ValueError, IndexError):
        return None
