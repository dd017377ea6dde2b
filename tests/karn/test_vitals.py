from __future__ import annotations

import os
from pathlib import Path

from msgspec import UNSET

from esper.karn.vitals import Sampler


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
    assert first is not None and first.cpu_share is UNSET and first.process_cores is UNSET
    _write(tmp_path, ticks=3, process=4)
    second = sampler.sample(102.0)
    assert second is not None
    assert (second.cpu_share, second.io_wait_share, second.process_cores) == (0.25, 0.5, 1.5)
    assert (second.memory_available, second.memory_total) == (250 * 1024, 1000 * 1024)
    assert second.process_memory == 3 * os.sysconf("SC_PAGE_SIZE")
    assert second.temperature is UNSET and second.read_bytes_per_second is UNSET


def test_a_process_that_is_gone_leaves_the_host(tmp_path: Path) -> None:
    _write(tmp_path, ticks=1, process=1)
    found = Sampler(8, root=tmp_path).sample(0.0)
    assert found is not None and found.process_memory is UNSET and found.memory_total == 1000 * 1024


def test_this_process_on_this_machine() -> None:
    found = Sampler(os.getpid()).sample(0.0)
    if not Path("/proc/self/stat").exists():
        assert found is None
        return
    assert found is not None and found.process_memory is not UNSET
    assert found.process_memory > 2**20
