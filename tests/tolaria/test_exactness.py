"""What a checkpoint says of the machine it was made on, and what is claimed on another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from esper.leyline import REGISTRY, TelemetryEventType
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import gpus_of, load_newest, save


def test_exactness_is_not_claimed_on_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {}, None)
    threads, capability = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NO AVX")
    loaded = load_newest(tmp_path)
    assert loaded.differences == [
        f"cpu_capability: saved with {capability}, here NO AVX",
        f"threads: saved with {threads}, here 7",
    ]
    payload = loaded.to_payload(after_seq=5)
    assert payload["exact"] is False
    msgspec.convert(payload, REGISTRY[TelemetryEventType.CHECKPOINT_LOADED].payload)


def test_exactness_is_not_claimed_on_another_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cuda:0": "NVIDIA H200", "cuda:1": "NVIDIA A100"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[str(device)])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(checkpoint, "_deterministic", lambda: True)
    save(tmp_path, 1, {}, None, gpus=gpus_of("cuda:0"))
    first = replace(load_newest(tmp_path), gpus=gpus_of("cuda:0"))
    assert first.differences == [] and first.environment["gpu"] == "NVIDIA H200", "the other one is not the run's"
    second = replace(first, gpus=gpus_of("cuda:1"))
    assert second.differences == ["gpu: saved with NVIDIA H200, here NVIDIA A100"]
    both = replace(first, gpus=[*first.gpus, *second.gpus])
    assert both.differences == ["gpu: saved with NVIDIA H200, here NVIDIA H200, NVIDIA A100"]
    assert replace(first, gpus=first.gpus * 2).differences == [], "ranks on one kind"
    assert gpus_of("cpu") == []
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with precision(torch.backends.cudnn.conv, "ieee"):
        assert first.differences == [
            "cudnn_deterministic: saved with False, here True",
            "cudnn_tf32: saved with conv rnn, here rnn",
        ]


def test_exactness_is_not_claimed_where_a_gpu_may_give_other_bits_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "cpu", 1, {}, None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    save(tmp_path / "gpu", 1, {}, None, gpus=["NVIDIA H200"])
    assert load_newest(tmp_path / "cpu").differences == [], "what computes on a CPU does not hang on a GPU"
    found = replace(load_newest(tmp_path / "gpu"), gpus=["NVIDIA H200"]).differences
    assert [line.partition(", with")[0] for line in found] == [
        "deterministic_algorithms: False", "cudnn_benchmark: True"
    ]  # fmt: skip


def test_precision_that_is_set_for_one_backend_can_be_saved(tmp_path: Path) -> None:
    with precision(torch.backends.cuda.matmul, "tf32"):
        save(tmp_path, 1, {}, None)
        assert load_newest(tmp_path).environment["matmul_precision"] == "cuda tf32, mkldnn none"


@contextmanager
def precision(of: Any, value: str) -> Iterator[None]:
    """Within, torch computes so; it takes no attribute back by deletion."""
    before = of.fp32_precision
    of.fp32_precision = value
    try:
        yield
    finally:
        of.fp32_precision = before
