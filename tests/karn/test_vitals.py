from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from esper.karn import bound
from esper.karn.schema import StepSplit
from esper.karn.vitals import Gpu, Sampler, find_gpu


def test_nothing_to_read_is_nothing(tmp_path: Path) -> None:
    assert Sampler(1, root=tmp_path).sample(0.0) is None


def _write(root: Path, *, ticks: int, process: int) -> None:
    (root / "proc/7").mkdir(parents=True, exist_ok=True)
    hertz = os.sysconf("SC_CLK_TCK")
    cpu = [ticks * hertz, 0, 0, ticks * hertz, ticks * hertz * 2, 0, 0, 0]
    (root / "proc/stat").write_text(f"cpu  {' '.join(map(str, cpu))}\n")
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 250 kB\n")
    fields = ["S", *["0"] * 8, "5", "0", str(process * hertz), "0", *["0"] * 8, "3", *["0"] * 10]
    (root / "proc/7/stat").write_text(f"7 (a (name) b) {' '.join(fields)}\n")


def test_rates_are_differences(tmp_path: Path) -> None:
    times = iter([10.0, 12.0])
    sampler = Sampler(7, root=tmp_path, clock=lambda: next(times))
    _write(tmp_path, ticks=1, process=1)
    first = sampler.sample(100.0)
    assert first is not None and first.cpu_share is None and first.process_cores is None
    _write(tmp_path, ticks=3, process=4)
    second = sampler.sample(102.0)
    assert second is not None
    assert (second.cpu_share, second.io_wait_share, second.process_cores) == (0.25, 0.5, 1.5)
    assert (second.memory_available, second.memory_total) == (250 * 1024, 1000 * 1024)
    assert second.process_memory == 3 * os.sysconf("SC_PAGE_SIZE")
    assert second.temperature is None and second.read_bytes_per_second is None


def test_a_process_that_is_gone_leaves_the_host(tmp_path: Path) -> None:
    _write(tmp_path, ticks=1, process=1)
    found = Sampler(8, root=tmp_path).sample(0.0)
    assert found is not None and found.process_memory is None and found.memory_total == 1000 * 1024


def test_this_process_on_this_machine() -> None:
    found = Sampler(os.getpid()).sample(0.0)
    if not Path("/proc/self/stat").exists():
        assert found is None
        return
    assert found is not None and found.process_memory is not None
    assert found.process_memory > 2**20


class FakeNvml(ModuleType):
    """Two devices of 100 and 200 bytes, as ``pynvml`` gives them; ``silent`` names functions that are not supported."""

    class NVMLError(Exception):
        pass

    def __init__(self, holders: dict[int, list[int]], silent: tuple[str, ...] = (), driver: bool = True) -> None:
        super().__init__("pynvml")
        self.holders, self.silent, self.driver = holders, silent, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.silent:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return self._answer("processes", [SimpleNamespace(pid=pid) for pid in self.holders.get(handle, [])])

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._answer("rates", SimpleNamespace(gpu=(30, 90)[handle]))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._answer("memory", SimpleNamespace(used=(10, 199)[handle], total=(100, 200)[handle]))


def test_the_gpu_is_the_one_that_holds_memory_of_the_run() -> None:
    nvml = FakeNvml({0: [5], 1: [7, 5]})
    assert Gpu(7, nvml).sample() == (0.9, 199, 200)
    assert Gpu(5, nvml).sample() == (0.9, 209, 300)
    assert Gpu(6, nvml).sample() == (None, None, None)


@pytest.mark.parametrize(
    "silent, expected",
    [
        (("rates",), (None, 199, 200)),
        (("memory",), (0.9, None, None)),
        (("processes",), (None, None, None)),
    ],
)
def test_what_the_driver_does_not_say_is_unknown(silent: tuple[str, ...], expected: tuple[object, ...]) -> None:
    assert Gpu(7, FakeNvml({1: [7]}, silent)).sample() == expected


def test_gpu_vitals_reach_the_sample_and_the_bound(tmp_path: Path) -> None:
    _write(tmp_path, ticks=1, process=1)
    found = Sampler(7, root=tmp_path, gpu=Gpu(7, FakeNvml({1: [7]}))).sample(0.0)
    assert found is not None and (found.gpu_share, found.gpu_memory, found.gpu_memory_total) == (0.9, 199, 200)
    assert bound.detect(StepSplit(environments=0), found, None).evidence == {"gpu_memory_left": 1 - 199 / 200}
    without = Sampler(7, root=tmp_path).sample(0.0)
    assert without is not None and without.gpu_share is None


def test_a_gpu_is_found_with_package_and_driver_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({0: [7]}))
    gpu = find_gpu(7)
    assert gpu is not None and gpu.sample() == (0.3, 10, 100)
    assert find_gpu(None) is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({}, driver=False))
    assert find_gpu(7) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpu(7) is None
