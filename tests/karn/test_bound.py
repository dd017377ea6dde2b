from __future__ import annotations

from typing import Any

import pytest

from esper.karn.bound import detect
from esper.karn.schema import HostVitals, StepSplit

QUIET = {"cores": 4, "cpu_share": 0.5, "process_cores": 2.2, "memory_total": 100, "memory_available": 50}


def _vitals(**changed: Any) -> HostVitals:
    return HostVitals(time=0.0, **{**QUIET, **changed})


@pytest.mark.parametrize(
    ("kind", "steps", "vitals"),
    [
        ("thermal", {}, {"throttled_per_second": 2.0, "process_cores": 4.0}),
        ("memory", {}, {"memory_available": 3}),
        ("memory", {}, {"major_faults_per_second": 400.0}),
        ("memory", {}, {"gpu_memory": 99, "gpu_memory_total": 100}),
        ("input", {"train": 100.0, "input_wait": 60.0}, {}),
        ("compute", {"train": 100.0, "input_wait": 1.0}, {"process_cores": 3.9}),
        ("compute", {}, {"gpu_share": 0.97}),
        ("compute", {}, {"cpu_share": 0.99, "process_cores": 1.0}),
        ("sync", {}, {"process_cores": 0.5}),
        ("unknown", {}, {}),
    ],
)
def test_kinds(kind: str, steps: dict[str, float], vitals: dict[str, Any]) -> None:
    found = detect(StepSplit(**steps), _vitals(**vitals), 4)
    assert found.kind == kind and found.advice.count("\n") == 0
    assert bool(found.evidence) is (kind != "unknown")


def test_input_needs_no_vitals_but_nothing_else_does_without() -> None:
    assert detect(StepSplit(train=100.0, input_wait=60.0), None, 4).kind == "input"
    assert detect(StepSplit(train=100.0, input_wait=1.0), None, 4).kind == "unknown"
    assert detect(StepSplit(train="NaN", input_wait=1.0), None, 4).kind == "unknown"


def test_a_busy_single_thread_is_compute_bound() -> None:
    assert detect(StepSplit(), _vitals(process_cores=0.95), 1).kind == "compute"
