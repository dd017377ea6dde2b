"""What a checkpoint says of the machine it was made on, and what is claimed on another."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from esper.leyline import REGISTRY, TelemetryEventType
from esper.tolaria.checkpoint import load_newest, save


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
    save(tmp_path / "cpu", 1, {}, None)
    names = {0: "NVIDIA H200", 1: "NVIDIA H200"}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: names[i])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    save(tmp_path / "gpu", 1, {}, None)
    assert load_newest(tmp_path / "cpu").differences == [], "what computed on a CPU does not hang on a GPU"
    loaded = load_newest(tmp_path / "gpu")
    assert loaded.differences == [] and loaded.environment["gpu"] == "NVIDIA H200"
    names[1] = "NVIDIA A100"
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # a fresh process
    assert loaded.differences == [
        "cudnn_deterministic: saved with False, here True",
        "gpu: saved with NVIDIA H200, here NVIDIA A100, NVIDIA H200",
    ]
