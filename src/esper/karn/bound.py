"""What limits a run: compute, memory, input, synchronisation or heat, with one line of advice.

The verdict needs evidence. Where neither the step-time split nor the vitals say enough, it is ``unknown``.
"""

from __future__ import annotations

from typing import Final

from esper.karn.parts import Number
from esper.karn.schema import Bound, HostVitals, StepSplit

INPUT_SHARE: Final = 0.25
"""Share of training time spent waiting for data, from which on the run is input-bound."""
MEMORY_LEFT: Final = 0.05
"""Share of the memory that the run may use still available, below which it is about to swap or be killed."""
FAULTS: Final = 50.0
"""Major page faults a second: memory is being read back from disk."""
BUSY: Final = 0.85
"""Share of its cores that a compute-bound run keeps busy."""
IDLE: Final = 0.4
"""Share of its cores below which a run with work to do is waiting for something."""
GPU_MEMORY_LEFT: Final = 0.03


def detect(steps: StepSplit, vitals: HostVitals | None, threads: int | None) -> Bound:
    """The first cause that the evidence supports, the most harmful first: heat, memory, input, then compute or sync."""
    for probe in (_thermal, _memory):
        if vitals is not None and (found := probe(vitals)) is not None:
            return found
    if (found := _input(steps, vitals)) is not None:
        return found
    if vitals is not None and (found := _cores(vitals, threads)) is not None:
        return found
    return Bound(
        kind="unknown",
        text="not measurable from here",
        advice="Watch the run live on its own machine to see its CPU and memory.",
    )


def _thermal(vitals: HostVitals) -> Bound | None:
    throttled = vitals.throttled_per_second
    if throttled is None or throttled <= 0:
        return None
    return Bound(
        kind="thermal",
        text=f"the CPU throttled {throttled:.1f} times a second",
        advice="Cool the machine or use fewer threads; every timing is off until it runs at full clock again.",
        evidence=_known(throttled_per_second=throttled, temperature=vitals.temperature),
    )


def _memory(vitals: HostVitals) -> Bound | None:
    left, total = vitals.memory_available, vitals.memory_total
    if left is not None and total is not None and total > 0 and left / total < MEMORY_LEFT:
        return Bound(
            kind="memory",
            text=f"{left / total:.0%} of the memory that the run may use is left",
            advice="Run fewer environments at once or a smaller batch before the system ends the run.",
            evidence=_known(memory_left=left / total),
        )
    faults = vitals.major_faults_per_second
    if faults is not None and faults > FAULTS:
        return Bound(
            kind="memory",
            text=f"{faults:.0f} major page faults a second",
            advice="The run reads its memory back from disk: run fewer environments at once.",
            evidence=_known(major_faults_per_second=faults),
        )
    used, of = vitals.gpu_memory, vitals.gpu_memory_total
    if used is not None and of is not None and of > 0 and 1 - used / of < GPU_MEMORY_LEFT:
        return Bound(
            kind="memory",
            text=f"{1 - used / of:.0%} of the device's memory is left",
            advice="Use a smaller batch or fewer environments per device.",
            evidence=_known(gpu_memory_left=1 - used / of),
        )
    return None


def _input(steps: StepSplit, vitals: HostVitals | None) -> Bound | None:
    train, wait = steps.train, steps.input_wait
    if isinstance(train, str) or isinstance(wait, str) or train is None or wait is None or train <= 0:
        return None
    share = wait / train
    if share < INPUT_SHARE:
        return None
    io_wait = vitals.io_wait_share if vitals is not None else None
    disk = io_wait is not None and io_wait > 0.1
    return Bound(
        kind="input",
        text=f"{share:.0%} of training time goes into waiting for data",
        advice="The disk is the bottleneck: keep the data in memory."
        if disk
        else "Make batches larger or augment less.",
        evidence=_known(input_wait_share=share, io_wait_share=io_wait),
    )


def _cores(vitals: HostVitals, threads: int | None) -> Bound | None:
    used, cores = vitals.process_cores, vitals.cores
    gpu = vitals.gpu_share
    if gpu is not None and gpu >= BUSY:
        return Bound(
            kind="compute",
            text=f"the device is {gpu:.0%} busy",
            advice="Nothing waits: a smaller host, fewer counterfactuals or a faster device would help.",
            evidence=_known(gpu_share=gpu),
        )
    if used is None or cores is None:
        return None
    mine = min(threads, cores) if threads else cores
    evidence = _known(process_cores=used, cores=float(cores), cpu_share=vitals.cpu_share)
    if used >= BUSY * mine:
        return Bound(
            kind="compute",
            text=f"the run keeps {used:.1f} of its {mine} cores busy",
            advice="Nothing waits: a smaller host, fewer counterfactuals or more cores would help.",
            evidence=evidence,
        )
    if vitals.cpu_share is not None and vitals.cpu_share >= BUSY:
        return Bound(
            kind="compute",
            text=f"others keep the machine busy ({vitals.cpu_share:.0%}); the run has {used:.1f} of {mine} cores",
            advice="Stop what else runs here, or expect timings to wander.",
            evidence=evidence,
        )
    if used < IDLE * mine:
        return Bound(
            kind="sync",
            text=f"the run uses {used:.1f} of its {mine} cores and does not wait for data",
            advice="Small steps or waiting between environments: use larger batches or fewer threads.",
            evidence=evidence,
        )
    return None


def _known(**values: object) -> dict[str, Number]:
    return {name: value for name, value in values.items() if isinstance(value, float)}
