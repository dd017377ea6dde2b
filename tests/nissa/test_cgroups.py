from __future__ import annotations

from pathlib import Path

import pytest

from esper.nissa.cgroups import MemoryLimit, memory_limit
from esper.nissa.vitals import Sampler


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def group(folder: str, limit: object, usage: int, inactive: int, version: int = 2) -> dict[str, object]:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 5\n{names[2]} {inactive}"
    return {f"{folder}/{names[0]}": limit, f"{folder}/{names[1]}": usage, f"{folder}/memory.stat": stat}


@pytest.mark.parametrize(
    ("version", "mount", "line"), [(1, "sys/fs/cgroup/memory", "4:cpu,memory:/a/b"), (2, "sys/fs/cgroup", "0::/a/b")]
)
def test_both_versions_and_what_can_be_given_back(tmp_path: Path, version: int, mount: str, line: str) -> None:
    write(tmp_path, {"proc/7/cgroup": f"9:pids:/x\n{line}", **group(f"{mount}/a/b", 100, 80, 30, version)})
    assert memory_limit(tmp_path, 7) == MemoryLimit(total=100, available=50)


def test_the_limits_of_all_parents_hold(tmp_path: Path) -> None:
    inner, outer = group("sys/fs/cgroup/a/b", 100, 20, 0), group("sys/fs/cgroup/a", 1000, 990, 0)
    write(tmp_path, {"proc/7/cgroup": "0::/a/b", **inner, **outer})
    assert memory_limit(tmp_path, 7) == MemoryLimit(total=1000, available=10)


def test_a_container_that_sees_its_own_mount_and_the_path_of_the_host(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/cgroup": "0::/docker/123", **group("sys/fs/cgroup", 100, 110, 0)})
    assert memory_limit(tmp_path, 7) == MemoryLimit(total=100, available=0)


def test_no_limit_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"proc/7/cgroup": "0::/a\nnonsense", **group("sys/fs/cgroup/a", "max", 10, 0)})
    assert memory_limit(tmp_path, 7) is None
    assert memory_limit(tmp_path, 8) is None, "a process that is gone"


def test_the_tighter_of_machine_and_group_counts(tmp_path: Path) -> None:
    machine = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 100 kB", "proc/7/cgroup": "0::/a"}
    for limit, expected in ((50 * 1024, (50 * 1024, 40 * 1024)), (900 * 1024, (1000 * 1024, 100 * 1024))):
        write(tmp_path, {**machine, **group("sys/fs/cgroup/a", limit, 10 * 1024, 0)})
        found = Sampler(7, root=tmp_path).sample()
        assert (found["memory_total"], found["memory_available"]) == expected
