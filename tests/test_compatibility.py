"""The table of compatibility: a few of its models quickly, all that are installed where there is time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import compatibility
from compatibility_models import PACKAGES

EVERY = [(package, name) for package, models in PACKAGES.items() for name in models]
REFUSED = {"get_extra_state", "torch.compile", "ScriptModule", "DataParallel"}
MAY_BE_REFUSED = {"experts"}
"""Which of its parts are called depends on its weights, and so do the places that are found."""


def cells(package: str, name: str, folder: Path) -> dict[str, str]:
    trial = compatibility.Trial(PACKAGES[package][name], folder)
    trial.run()
    return trial.cells


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["ScriptModule", "DataParallel", "get_extra_state"])
def test_what_is_refused_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    (told,) = cells("odd", name, tmp_path).values()
    assert told.startswith("refused: ") and "\n" not in told


def test_a_block_that_is_called_three_times_passes_every_column(tmp_path: Path) -> None:
    assert cells("odd", "one block, three times", tmp_path) == dict.fromkeys(compatibility.COLUMNS, "passed")


def test_a_failure_is_shown_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: Any) -> None:
        raise ArithmeticError("no")

    monkeypatch.setattr(compatibility.Trial, "play", breaks)
    found = cells("torch.nn", "MLP", tmp_path)
    assert found["wrapped"].startswith("FAILED: ArithmeticError: no")
    page = compatibility.table([{"package": "torch.nn", "model": "MLP", "slots": [], "cells": found}])
    assert "1 failed" in page and "FAILED [1]" in page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "name"), EVERY)
def test_no_model_fails(package: str, name: str, tmp_path: Path) -> None:
    if package != "odd":
        pytest.importorskip(package)
    found = cells(package, name, tmp_path)
    told = {said for said in found.values() if said != "passed"}
    assert all(said.startswith("refused: ") for said in told)
    assert bool(told) == (name in REFUSED) or name in MAY_BE_REFUSED
