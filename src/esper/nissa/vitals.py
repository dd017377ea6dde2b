"""Body vitals of a run: ``/proc``, ``/sys`` and NVML, sampled beside the training, in a thread of its own.

What cannot be read is absent: another system, a file without permission, a GPU without its driver or without the
package ``nvidia-ml-py``. The keys are those of the payload :class:`~esper.leyline.payloads.measured.HostVitals`.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.cgroups import memory_limit, read

EVERY: Final = 10.0
"""Seconds between samples: some 3 MB of journal a day."""
VITALS: Final = "vitals"
"""Producer of samples: they come by the clock, and must not change the numbers of what the run says."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class _Counters:
    """Counters that only a difference gives sense to."""

    at: float
    busy: float | None = None
    total: float | None = None
    io_wait: float | None = None
    process: float | None = None
    faults: float | None = None
    read: float | None = None
    written: float | None = None
    throttled: float | None = None


class Gpu:
    """The devices that a run computes on, through NVML (``nvmlDeviceGetUtilizationRates``,
    ``nvmlDeviceGetMemoryInfo``).

    ``nvml`` is the module ``pynvml`` or one like it. Devices are told by UUID, as a mask of visible devices gives them
    other numbers there than here; with several, the sums of memory and the busiest share.
    """

    def __init__(self, uuids: Sequence[str], nvml: Any) -> None:
        self.uuids = tuple(uuids)
        self._nvml = nvml

    def sample(self) -> tuple[float | None, int | None, int | None]:
        """Share of time that a kernel ran, bytes used and bytes in all; unknown where the driver does not say."""
        handles = [self._ask(self._nvml.nvmlDeviceGetHandleByUUID, uuid) for uuid in self.uuids]
        if None in handles:
            return None, None, None
        rates = [self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle) for handle in handles]
        memory = [self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle) for handle in handles]
        shares = [rate.gpu / 100 for rate in rates if rate is not None]
        whole = bool(memory) and None not in memory
        return (
            max(shares) if shares else None,
            sum(info.used for info in memory) if whole else None,
            sum(info.total for info in memory) if whole else None,
        )

    def _ask(self, question: Callable[[Any], Any], about: Any) -> Any:
        try:
            return question(about)
        except self._nvml.NVMLError:
            return None


def find_gpu(uuids: Sequence[str]) -> Gpu | None:
    """Access to the GPUs of those UUIDs; ``None`` for none, without ``nvidia-ml-py``, and without a driver."""
    if not uuids:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return Gpu(uuids, nvml)


class Sampler:
    """Samples process ``pid`` with all that it started. ``root`` is the file system's root and ``clock`` the monotonic
    clock, for tests.

    ``gpu`` is how its GPU is read, if it can be; ``disk`` lies on the disk that it writes to.
    """

    def __init__(
        self,
        pid: int,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        gpu: Gpu | None = None,
        disk: Path | None = None,
    ) -> None:
        self.pid = pid
        self._gpu, self._disk = gpu, disk
        self._root, self._proc, self._sys = root, root / "proc", root / "sys"
        self._clock = clock
        self._last: _Counters | None = None

    def sample(self) -> dict[str, float | int]:
        """Vitals since the last call; empty where there is nothing to read.

        The first call has no rates yet, since there is nothing to compare with.
        """
        at, pids = self._clock(), list(self._tree())
        counters = self._counters(at, pids)
        before, self._last = self._last or counters, counters
        memory = self._memory()
        resident = self._resident(pids)
        if counters.total is None and not memory and resident is None:
            return {}
        seconds = counters.at - before.at
        total = _difference(counters.total, before.total)
        gpu_share, gpu_memory, gpu_total = (None, None, None) if self._gpu is None else self._gpu.sample()
        measured = {
            "cores": os.cpu_count(),
            "cpu_share": _ratio(_difference(counters.busy, before.busy), total),
            "io_wait_share": _ratio(_difference(counters.io_wait, before.io_wait), total),
            "process_cores": _ratio(_difference(counters.process, before.process), seconds),
            "process_memory": resident,
            "memory_total": memory.get("MemTotal"),
            "memory_available": memory.get("MemAvailable"),
            "major_faults_per_second": _ratio(_difference(counters.faults, before.faults), seconds),
            "read_bytes_per_second": _ratio(_difference(counters.read, before.read), seconds),
            "write_bytes_per_second": _ratio(_difference(counters.written, before.written), seconds),
            "disk_free": None if self._disk is None else _free(self._disk),
            "throttled_per_second": _ratio(_difference(counters.throttled, before.throttled), seconds),
            "temperature": self._temperature(),
            "gpu_share": gpu_share,
            "gpu_memory": gpu_memory,
            "gpu_memory_total": gpu_total,
        }
        return {name: value for name, value in measured.items() if value is not None}

    def _tree(self) -> Iterator[int]:
        """The process and all that came from it and are still there."""
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            for path in (self._proc / str(pid)).glob("task/*/children"):
                waiting += [int(word) for word in read(path).split() if word.isdigit()]

    def _resident(self, pids: Sequence[int]) -> int | None:
        """Bytes that the processes hold. What several share is counted once, in parts, where there are several."""
        first, *others = pids
        if others:
            shares = [_fields(self._proc / str(pid) / "smaps_rollup").get("Pss") for pid in (first, *others)]
            return sum(share for share in shares if share is not None) if shares[0] is not None else None
        stat = process_stat(first, self._proc)
        return None if stat is None else int(stat[21]) * _PAGE

    def _memory(self) -> dict[str, int]:
        """The host's, or what the process's control group allows where that leaves it less."""
        memory = _fields(self._proc / "meminfo")
        limit = memory_limit(self._root, self.pid)
        if limit is None or limit.available >= memory.get("MemAvailable", math.inf):
            return memory
        return {"MemTotal": limit.total, "MemAvailable": limit.available}

    def _counters(self, at: float, pids: Sequence[int]) -> _Counters:
        # what a process that is gone and was waited for took stands with the one that waited
        stats = [stat for pid in pids if (stat := process_stat(pid, self._proc)) is not None]
        inputs = [told for pid in pids if (told := _fields(self._proc / str(pid) / "io"))]
        line = read(self._proc / "stat").partition("\n")[0].split()
        cpu = [float(word) / _TICKS for word in line[1:9]] if line[:1] == ["cpu"] and len(line) >= 9 else None
        throttles = [
            float(text)
            for path in sorted(self._sys.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
            if (text := read(path).strip()).isdigit()
        ]
        return _Counters(
            at=at,
            busy=None if cpu is None else sum(cpu) - cpu[3] - cpu[4],
            total=None if cpu is None else sum(cpu),
            io_wait=None if cpu is None else cpu[4],
            process=sum(float(part) for stat in stats for part in stat[11:15]) / _TICKS if stats else None,
            faults=sum(float(stat[9]) + float(stat[10]) for stat in stats) if stats else None,
            read=float(sum(told.get("read_bytes", 0) for told in inputs)) if inputs else None,
            written=float(sum(told.get("write_bytes", 0) for told in inputs)) if inputs else None,
            throttled=sum(throttles) if throttles else None,
        )

    def _temperature(self) -> float | None:
        readings = [read(path).strip() for path in sorted(self._sys.glob("class/thermal/thermal_zone*/temp"))]
        degrees = [int(reading) / 1000 for reading in readings if reading.lstrip("-").isdigit()]
        return max(degrees) if degrees else None


class VitalsRecorder:
    """Samples until it is closed. Events wait for :meth:`take`, for whoever writes the run's events to write these
    between its own: a run that hangs must not look as if it spoke."""

    def __init__(self, sampler: Sampler, every: float = EVERY) -> None:
        self._sampler, self._every = sampler, every
        self._waiting: deque[TelemetryEvent] = deque()
        self._closed = threading.Event()
        sampler.sample()  # rates begin here
        self._thread = threading.Thread(target=self._work, name="esper-vitals", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take(self) -> list[TelemetryEvent]:
        """What was sampled since the last call, stamped with when it was."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def close(self) -> None:
        """End the sampling."""
        self._closed.set()
        self._thread.join(5.0)

    def _work(self) -> None:
        while not self._closed.wait(self._every):
            if measured := self._sampler.sample():
                event = TelemetryEvent(
                    event_type=T.ANALYTICS_SNAPSHOT,
                    timestamp=time.time(),
                    t_mono=time.monotonic(),
                    producer=VITALS,
                    data={"kind": "host_vitals", **measured},
                )
                self._waiting.append(event)


def _free(path: Path) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def process_stat(pid: int, proc: Path = Path("/proc")) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the state on, see ``proc(5)``; ``None`` where there is no such process."""
    # the name before them may hold spaces and brackets
    fields = read(proc / str(pid) / "stat").rpartition(")")[2].split()
    return fields if len(fields) > 21 else None


def _fields(path: Path) -> dict[str, int]:
    """``Name: 123 kB`` lines in bytes."""
    fields = {}
    for line in read(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return fields


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None or now < before else now - before


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
