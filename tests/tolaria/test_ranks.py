"""Processes that train together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import esper
from esper.leyline import UsageError
from esper.run.config import RunConfig
from esper.run.open import RunRequest, prepare
from own_loop import LOSS, TRAIN, VALIDATION, Loop, narrow
from ranks import on_ranks


def test_several_processes_are_refused_before_they_drift_apart(tmp_path: Path) -> None:
    def grower(rank: int) -> Any:
        return Loop(tmp_path / str(rank), "static")

    found = on_ranks(2, tmp_path / "ranks", grower)
    assert [type(each) for each in found] == [UsageError] * 2
    assert "2 processes" in str(found[0])


def test_torchrun_without_a_process_group_is_refused_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 processes"):
        esper.grow(narrow(), train=TRAIN, val=VALIDATION, loss=LOSS, run_dir=tmp_path / "run")
    with pytest.raises(UsageError, match="esper train runs in 2 processes"):
        prepare(RunRequest("heuristic", RunConfig, {"run_dir": str(tmp_path / "run")}))
    monkeypatch.setenv("WORLD_SIZE", "1")
    Loop(tmp_path, "static")
