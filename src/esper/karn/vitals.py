"""Body vitals of a run, read by Overwatch from outside: ``/proc``, ``/sys`` and NVML, never in the trainer.

What cannot be read is absent: another machine, another system, a process that is gone, a file without permission,
a GPU without its driver or without the package ``nvidia-ml-py``.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.karn.cgroups import memory_limit, read
from esper.karn.schema import HostVitals

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
    throttled: float | None = None


class Gpu:
    """The device that a run computes on, through NVML (``nvmlDeviceGetUtilizationRates``, ``nvmlDeviceGetMemoryInfo``).

    ``nvml`` is the module ``pynvml`` or one like it. A device is the one that holds memory of the process, as a mask of
    visible devices gives it another number there than here; with several, the sums of memory and the busiest share.
    """

    def __init__(self, pid: int, nvml: Any) -> None:
        self.pid = pid
        self._nvml = nvml

    def sample(self) -> tuple[float | None, int | None, int | None]:
        """Share of time that a kernel ran, bytes used and bytes in all; unknown where the driver does not say."""
        try:
            handles = self._mine()
        except self._nvml.NVMLError:
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

    def _mine(self) -> list[Any]:
        nvml = self._nvml
        every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [handle for handle in every if self.pid in self._processes(handle)]

    def _processes(self, handle: Any) -> set[int]:
        return {process.pid for process in self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()}

    def _ask(self, question: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return question(handle)
        except self._nvml.NVMLError:
            return None


def find_gpu(pid: int | None) -> Gpu | None:
    """Access to the GPU of process ``pid``; ``None`` without ``nvidia-ml-py``, without a driver, without a process."""
    if pid is None:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return Gpu(pid, nvml)


class Sampler:
    """Samples one process. ``root`` is the file system's root and ``clock`` the monotonic clock, for tests.

    ``gpu`` is how the process's GPU is read, if it can be.
    """

    def __init__(
        self,
        pid: int | None,
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        gpu: Gpu | None = None,
    ) -> None:
        self.pid = pid
        self._gpu = gpu
        self._root, self._proc, self._sys = root, root / "proc", root / "sys"
        self._clock = clock
        self._last: _Counters | None = None

    def sample(self, now: float) -> HostVitals | None:
        """Vitals since the last call, stamped ``now`` (wall clock); ``None`` where there is nothing to read.

        The first call has no rates yet, since there is nothing to compare with.
        """
        counters = self._counters()
        before, self._last = self._last or counters, counters
        memory = self._memory()
        stat = _process(self._proc, self.pid)
        if counters.total is None and not memory and stat is None:
            return None
        seconds = counters.at - before.at
        total = _difference(counters.total, before.total)
        gpu_share, gpu_memory, gpu_total = (None, None, None) if self._gpu is None else self._gpu.sample()
        return HostVitals(
            time=now,
            cores=os.cpu_count(),
            cpu_share=_ratio(_difference(counters.busy, before.busy), total),
            io_wait_share=_ratio(_difference(counters.io_wait, before.io_wait), total),
            process_cores=_ratio(_difference(counters.process, before.process), seconds),
            process_memory=None if stat is None else int(stat[21]) * _PAGE,
            memory_total=memory.get("MemTotal"),
            memory_available=memory.get("MemAvailable"),
            major_faults_per_second=_ratio(_difference(counters.faults, before.faults), seconds),
            read_bytes_per_second=_ratio(_difference(counters.read, before.read), seconds),
            throttled_per_second=_ratio(_difference(counters.throttled, before.throttled), seconds),
            temperature=self._temperature(),
            gpu_share=gpu_share,
            gpu_memory=gpu_memory,
            gpu_memory_total=gpu_total,
        )

    def _memory(self) -> dict[str, int]:
        """The host's, or what the process's control group allows where that leaves it less."""
        memory = _fields(self._proc / "meminfo")
        limit = None if self.pid is None else memory_limit(self._root, self.pid)
        if limit is None or limit.available >= memory.get("MemAvailable", math.inf):
            return memory
        return {"MemTotal": limit.total, "MemAvailable": limit.available}

    def _counters(self) -> _Counters:
        stat = _process(self._proc, self.pid)
        io = _fields(self._proc / str(self.pid) / "io") if self.pid is not None else {}
        line = read(self._proc / "stat").partition("\n")[0].split()
        cpu = [float(word) / _TICKS for word in line[1:9]] if line[:1] == ["cpu"] and len(line) >= 9 else None
        throttles = [
            float(text)
            for path in sorted(self._sys.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"))
            if (text := read(path).strip()).isdigit()
        ]
        return _Counters(
            at=self._clock(),
            busy=None if cpu is None else sum(cpu) - cpu[3] - cpu[4],
            total=None if cpu is None else sum(cpu),
            io_wait=None if cpu is None else cpu[4],
            process=None if stat is None else (float(stat[11]) + float(stat[12])) / _TICKS,
            faults=None if stat is None else float(stat[9]),
            read=float(io["read_bytes"]) if "read_bytes" in io else None,
            throttled=sum(throttles) if throttles else None,
        )

    def _temperature(self) -> float | None:
        readings = [read(path).strip() for path in sorted(self._sys.glob("class/thermal/thermal_zone*/temp"))]
        degrees = [int(reading) / 1000 for reading in readings if reading.lstrip("-").isdigit()]
        return max(degrees) if degrees else None


def _process(proc: Path, pid: int | None) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the state on; the name before them may hold spaces and brackets."""
    fields = read(proc / str(pid) / "stat").rpartition(")")[2].split() if pid is not None else []
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
