"""What Overwatch says is wrong, where it really is: hosts that sleep, forget or explode, seeds that learn what is
wrong, loaders that are slow, memory that is used up or read back from disk. Synthetic evidence for every factor and
class is in ``tests/karn``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_slot
import tiny as tiny_task
import torch
from fading import forgetful, misled
from tiny import tiny
from torch import Tensor

from esper.karn import anomaly
from esper.karn.aggregator import fold
from esper.karn.bound import detect
from esper.karn.fold_policy import host_vitals
from esper.karn.schema import Bound, StepSplit
from esper.karn.snapshot import build
from esper.karn.state import RunState
from esper.kasmina.slot import EventStamp
from esper.leyline import WAIT, Blend, Decision, EnvSpec, FactoredAction, GateThresholds, Op, TelemetryEvent
from esper.nissa.hub import NissaHub
from esper.nissa.vitals import Sampler
from esper.run.assembly import FORGIVING, build_executor, trainer_config, workload
from esper.run.config import RunConfig
from esper.simic.event_writer import RolloutEventWriter
from esper.simic.growth import GrowthEnvironments, Hosts
from esper.simic.mdp import GrowthMDP, MDPConfig
from esper.simic.vectorized import fresh_network
from esper.simic.workers import WorkerPool
from esper.tamiyo.masks import to_indices
from esper.tasks.base import TaskSpec

WAITING = Decision(WAIT, "")


def ran(task: TaskSpec, decisions: list[Decision], rows: int = 1, thresholds: GateThresholds | None = None) -> RunState:
    """What is known of ``rows`` hosts after so many epochs, each with the decision of that epoch."""
    events: list[TelemetryEvent] = []
    config = RunConfig(task="tiny:tiny", device="cpu")
    load = workload(task, config)
    trainer = trainer_config(load, config)
    trainer = replace(trainer, thresholds=thresholds or trainer.thresholds)
    executor = build_executor(load, config, events.append, governor=FORGIVING, trainer=trainer)
    executor.reset([EnvSpec(row, 0, 7, task.budget.max_epochs) for row in range(rows)])
    for decision in decisions:
        executor.step([decision] * rows)
    return fold(events)


def factors(state: RunState, env: int = 0) -> set[str]:
    return {factor.name for factor in anomaly.factors(state.environments[env].anomaly)}


def at_rate(task: TaskSpec, lr: float) -> TaskSpec:
    return replace(task, budget=replace(task.budget, lr=lr))


def test_a_quiet_run_raises_nothing() -> None:
    state = ran(tiny(12), [WAITING] * 8)
    assert factors(state) == set() and build(state, state.last_time or 0.0).levels == {"ok": 1}


def test_a_slow_loader_makes_it_input_bound() -> None:
    def slow(inputs: Tensor, generator: torch.Generator) -> Tensor:
        time.sleep(0.1)
        return inputs

    found = build(ran(replace(tiny(), augment=slow), [WAITING] * 2), 0.0).bound
    assert found.kind == "input" and "waiting for data" in found.text
    assert float(found.evidence["input_wait_share"]) > 0.25


def test_a_host_that_sleeps_in_its_step_is_the_slow_one_and_stands_first() -> None:
    made = iter(range(10**6))

    class Sleepy(tiny_task._Host):
        def __init__(self) -> None:
            super().__init__()
            self.number = next(made)

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:  # both sleep, so that a hiccup of the machine is small beside a step
                time.sleep(0.12 if self.number == last else 0.012)
            return super().forward(inputs)

    last = -1
    events: list[TelemetryEvent] = []
    config = RunConfig(task="tiny:tiny", device="cpu")
    executor = build_executor(workload(replace(tiny(), host=Sleepy), config), config, events.append)
    executor.reset([EnvSpec(row, 0, 7, 6) for row in (0, 1)])
    last = next(made) - 1
    for _ in range(3):
        executor.step([WAITING, WAITING])
    state = fold(events)
    assert "slow" in factors(state, 1)
    assert build(state, state.last_time or 0.0).devices[0].environments == [1, 0]


def test_a_host_that_forgets_is_falling() -> None:
    assert "falling" in factors(ran(forgetful(), [WAITING] * 14))


def test_a_host_that_forgets_under_a_learner_takes_its_reward_back() -> None:
    events: list[TelemetryEvent] = []
    config, task = RunConfig(task="fading:forgetful", device="cpu"), forgetful()
    pool = WorkerPool.here(
        lambda emit: build_executor(workload(task, config), config, emit, governor=FORGIVING, test=False), events.append
    )
    world = GrowthMDP(pool, task.metric, MDPConfig(task.budget.max_epochs))
    world.begin([7])
    hub = NissaHub()
    hub.add_sink(events.append)
    learner = GrowthEnvironments(world, world.space, fresh_network(0, cells=8), Hosts(1, 7), RolloutEventWriter(hub))
    learner.reset(0)
    waiting = torch.tensor([to_indices(world.space, WAIT)])
    for _ in range(task.budget.max_epochs - 1):  # the last one hands over the best network, and pays for it
        learner.step(waiting)
    assert {"falling", "reward_falling"} <= factors(fold(events))


def test_seeds_that_learn_what_is_wrong_pay_rent_for_nothing() -> None:
    grow = Decision(FactoredAction(Op.GERMINATE, "first", "mlp", Blend.LINEAR, 1.0, 1), "")
    on = Decision(FactoredAction(Op.ADVANCE, "first"), "")
    unseen = GateThresholds(min_training_epochs=1, min_gradient_ratio=0.0, min_gradient_health=0.0, ask_for_gain=False)
    state = ran(misled(), [grow, *[on] * 8], thresholds=unseen)
    assert "rent_without_gain" in factors(state)


def test_a_host_that_learns_nothing_is_stalled() -> None:
    assert factors(ran(at_rate(tiny(14), 1e-30), [WAITING] * 13)) == {"stalled"}


def test_a_learning_rate_that_no_host_survives() -> None:
    assert {"panic", "non_finite"} <= factors(ran(at_rate(tiny(), 1e18), [WAITING] * 2))


def test_a_policy_that_prunes_what_it_grows_is_a_storm() -> None:
    sites = {"first": "0", "second": "1", "third": "2"}
    task = replace(tiny(10), sites=sites, budget=replace(tiny(10).budget, max_seeds=3))
    grow = [Decision(FactoredAction(Op.GERMINATE, slot, "norm", Blend.LINEAR, 1.0, 1), "") for slot in sites]
    prune = [Decision(FactoredAction(Op.PRUNE, slot), "") for slot in sites]
    assert "prune_storm" in factors(ran(task, [*grow, *prune]))


def test_a_policy_that_asks_a_gate_again_and_again_is_a_storm() -> None:
    slot, events = test_slot.make()
    slot.stamp = EventStamp(env_id=0, episode=0, epoch=3)
    assert slot.germinate("mlp")
    slot.tick()
    for _ in range(11):
        assert not slot.advance_stage(), "nothing was measured that speaks for it"
    state = fold(events)
    state.environments[0].epoch = 3
    anomaly.update(state, state.environments[0])
    assert factors(state) == {"gate_storm"}


@contextmanager
def process(code: str, *arguments: str) -> Iterator[int]:
    """A process of its own that does something for as long as the block lasts."""
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline(), "it begins"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def machine(root: Path, pid: int | None = None, *, left: int = 50) -> Path:
    """A file system of an otherwise idle machine with 100 kB of memory, on which the process runs."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 100 kB\nMemAvailable: {left} kB\n")
    if pid is not None:
        (root / f"proc/{pid}").symlink_to(f"/proc/{pid}")
    return root


def bound_of(sampler: Sampler, wanted: str, between: Callable[[], Any] = lambda: time.sleep(0.3)) -> Bound:
    """The verdict on two samples; a machine that is busy elsewhere gets some more of them."""
    sampler.sample()
    for _ in range(40):
        between()
        found = detect(StepSplit(), host_vitals(0.0, sampler.sample()), 1)
        if found.kind == wanted:
            return found
    raise AssertionError(f"{found.kind}: {found.text}")


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@needs_proc
def test_a_step_that_sleeps_is_bound_by_synchronisation(tmp_path: Path) -> None:
    with process("import time\nprint(flush=True)\nwhile True: time.sleep(0.01)") as pid:
        found = bound_of(Sampler(pid, root=machine(tmp_path, pid)), "sync")
    assert "does not wait for data" in found.text


@needs_proc
def test_a_step_that_computes_is_bound_by_compute() -> None:
    with process("print(flush=True)\nwhile True: pass") as pid:
        bound_of(Sampler(pid), "compute")


READS_BACK = """\
import mmap, os, sys
size = 1 << 24
with open(sys.argv[1], "wb+") as file:
    file.write(os.urandom(1 << 20) * 16)
    file.flush()
    os.fsync(file.fileno())
    view = mmap.mmap(file.fileno(), size)
    view.madvise(mmap.MADV_RANDOM)
    while True:
        view.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        sum(view[at] for at in range(0, size, 1 << 14))
        print(flush=True)
"""


@needs_proc
def test_memory_that_is_read_back_from_disk(tmp_path: Path) -> None:
    with process(READS_BACK, str(tmp_path / "read-back")) as pid:
        if not _faults(pid):
            pytest.skip("this file system keeps everything in memory")
        found = bound_of(Sampler(pid, root=machine(tmp_path, pid)), "memory")
    assert "major page faults" in found.text


def _faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


TAKES_MEMORY = """\
import os, sys, time
from pathlib import Path
limit, usage, members = (Path(name) for name in sys.argv[1:])
members.write_text(str(os.getpid()))
taken = []
while int(usage.read_text()) < 0.96 * int(limit.read_text()):
    taken.append(bytearray(os.urandom(1 << 18)))
print(flush=True)
time.sleep(60)
"""


@contextmanager
def memory_group(limit: int) -> Iterator[list[str]]:
    """A control group of the kernel's, where this process may make one; files of its limit, usage and members."""
    for mount, names in (
        ("/sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("/sys/fs/cgroup", ("memory.max", "memory.current")),
    ):
        folder = Path(mount) / f"esper-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            with suppress(OSError):
                (folder / names[0]).write_text(str(limit))
                yield [str(folder / name) for name in (*names, "cgroup.procs")]
                return
        finally:
            folder.rmdir()
    pytest.skip("control groups cannot be made here")


def test_the_last_of_the_memory_of_a_container() -> None:
    with memory_group(48 << 20) as files, process(TAKES_MEMORY, *files) as pid:
        found = bound_of(Sampler(pid), "memory")
    assert "of the memory that the run may use is left" in found.text


def test_the_last_of_the_memory_of_a_machine(tmp_path: Path) -> None:
    """As the kernel tells it: a test must not really take it."""
    assert bound_of(Sampler(os.getpid(), root=machine(tmp_path, left=3)), "memory").text.startswith("3%")


def test_a_processor_that_throttles(tmp_path: Path) -> None:
    """As the kernel tells it: no test can heat a machine."""
    count = machine(tmp_path) / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    count.parent.mkdir(parents=True)
    count.write_text("7\n")
    found = bound_of(Sampler(1, root=tmp_path), "thermal", lambda: (time.sleep(0.01), count.write_text("9\n")))
    assert "throttled" in found.text
    shutil.rmtree(tmp_path / "sys")
    assert "throttled_per_second" not in Sampler(1, root=tmp_path).sample(), "where it is not told, it is unknown"
