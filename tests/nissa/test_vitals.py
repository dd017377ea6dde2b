from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from esper.leyline import TelemetryEvent
from esper.nissa import vitals
from esper.nissa.cgroups import read
from esper.nissa.vitals import VITALS, Gpu, Sampler, VitalsRecorder, find_gpu


def test_nothing_to_read_is_nothing(tmp_path: Path) -> None:
    assert Sampler(1, root=tmp_path).sample() == {}


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
    first = sampler.sample()
    assert "process_memory" in first and not first.keys() & {"cpu_share", "process_cores"}
    _write(tmp_path, ticks=3, process=4)
    second = sampler.sample()
    assert (second["cpu_share"], second["io_wait_share"], second["process_cores"]) == (0.25, 0.5, 1.5)
    assert (second["memory_available"], second["memory_total"]) == (250 * 1024, 1000 * 1024)
    assert second["process_memory"] == 3 * os.sysconf("SC_PAGE_SIZE")
    assert not second.keys() & {"temperature", "read_bytes_per_second", "disk_free"}


def test_a_sample_walks_the_processes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, ticks=1, process=1)
    (tmp_path / "proc/7/task/7").mkdir(parents=True)
    (tmp_path / "proc/7/task/7/children").write_text("")
    told = []
    monkeypatch.setattr(vitals, "read", lambda path: told.append(path.name) or read(path))
    assert "process_memory" in Sampler(7, root=tmp_path).sample()
    assert told.count("children") == 1


def test_a_process_that_is_gone_leaves_the_host(tmp_path: Path) -> None:
    _write(tmp_path, ticks=1, process=1)
    found = Sampler(8, root=tmp_path).sample()
    assert "process_memory" not in found and found["memory_total"] == 1000 * 1024


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@needs_proc
def test_this_process_on_this_machine(tmp_path: Path) -> None:
    found = Sampler(os.getpid(), disk=tmp_path).sample()
    assert found["process_memory"] > 2**20 and found["disk_free"] > 0
    assert Sampler(os.getpid(), disk=tmp_path / "gone").sample().keys() == found.keys() - {"disk_free"}


def test_what_children_take_is_the_runs(tmp_path: Path) -> None:
    """Also when they are gone: a process that waited for them has it then."""
    hertz = os.sysconf("SC_CLK_TCK")
    (tmp_path / "proc/7/task/7").mkdir(parents=True)

    def write(pid: int, own: int, gone: int) -> None:
        (tmp_path / f"proc/{pid}").mkdir(exist_ok=True)
        fields = ["S", *["0"] * 10, str(own * hertz), "0", str(gone * hertz), *["0"] * 7, "3", *["0"] * 10]
        (tmp_path / f"proc/{pid}/stat").write_text(f"{pid} (a) {' '.join(fields)}\n")
        (tmp_path / f"proc/{pid}/smaps_rollup").write_text(f"Rss: 900 kB\nPss: {pid} kB\n")

    times = iter([0.0, 10.0, 20.0])
    sampler = Sampler(7, root=tmp_path, clock=lambda: next(times))
    write(7, own=1, gone=0)
    write(8, own=0, gone=0)
    (tmp_path / "proc/7/task/7/children").write_text("8 ")
    assert sampler.sample()["process_memory"] == 15 * 1024
    write(7, own=2, gone=0)
    write(8, own=9, gone=0)
    assert sampler.sample()["process_cores"] == 1.0
    write(7, own=2, gone=14)
    (tmp_path / "proc/7/task/7/children").write_text("")
    last = sampler.sample()
    assert last["process_cores"] == 0.5 and last["process_memory"] == 3 * os.sysconf("SC_PAGE_SIZE")


def test_samples_wait_for_whoever_writes_and_end_with_the_recorder(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\n")
    recorder = VitalsRecorder(Sampler(1, root=tmp_path), every=0.001)
    taken: list[TelemetryEvent] = []
    for _ in range(10_000):
        if len(taken) >= 3:
            break
        taken += recorder.take()
        time.sleep(0.001)
    recorder.close()
    recorder.take()
    assert [event.timestamp for event in taken] == sorted(event.timestamp or 0.0 for event in taken)
    assert len(taken) >= 3 and all(event.data["memory_total"] == 100 * 1024 for event in taken)
    assert {event.producer for event in taken} == {VITALS} and not recorder.take()


UUIDS = ["GPU-a", "GPU-b"]


class FakeNvml(ModuleType):
    """Two devices of 100 and 200 bytes, as ``pynvml`` gives them; ``silent`` names functions that are not supported."""

    class NVMLError(Exception):
        pass

    def __init__(self, silent: tuple[str, ...] = (), driver: bool = True) -> None:
        super().__init__("pynvml")
        self.silent, self.driver = silent, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in UUIDS:
            raise self.NVMLError("Not Found")
        return UUIDS.index(uuid)

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.silent:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._answer("rates", SimpleNamespace(gpu=(30, 90)[handle]))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._answer("memory", SimpleNamespace(used=(10, 199)[handle], total=(100, 200)[handle]))


def test_the_gpu_is_the_one_that_the_run_computes_on() -> None:
    nvml = FakeNvml()
    assert Gpu(["GPU-b"], nvml).sample() == (0.9, 199, 200)
    assert Gpu(UUIDS, nvml).sample() == (0.9, 209, 300)
    assert Gpu(["GPU-b", "GPU-of-another-machine"], nvml).sample() == (None, None, None)


@pytest.mark.parametrize("silent, expected", [("rates", (None, 199, 200)), ("memory", (0.9, None, None))])
def test_what_the_driver_does_not_say_is_unknown(silent: str, expected: tuple[object, ...]) -> None:
    assert Gpu(["GPU-b"], FakeNvml((silent,))).sample() == expected


def test_gpu_vitals_reach_the_sample(tmp_path: Path) -> None:
    _write(tmp_path, ticks=1, process=1)
    found = Sampler(7, root=tmp_path, gpu=Gpu(["GPU-b"], FakeNvml())).sample()
    assert (found["gpu_share"], found["gpu_memory"], found["gpu_memory_total"]) == (0.9, 199, 200)
    assert "gpu_share" not in Sampler(7, root=tmp_path).sample()


def test_a_gpu_is_found_with_package_and_driver_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    gpu = find_gpu(["GPU-a"])
    assert gpu is not None and gpu.sample() == (0.3, 10, 100)
    assert find_gpu([]) is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    assert find_gpu(["GPU-a"]) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpu(["GPU-a"]) is None
