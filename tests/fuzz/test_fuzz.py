"""Each border under a million inputs in all: see ``runner.py``. Quick: every input that is known."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.runner import HERE, fuzz
from fuzz.seeds import TARGETS

KEPT = Path(os.environ.get("ESPER_FUZZ", HERE.parent.parent / "build" / "fuzz"))
"""Where the corpora grow and the counts stand; a test that was cut off goes on from there."""


def test_known_inputs_end_in_a_result_or_one_line() -> None:
    command = [sys.executable, str(HERE / "runner.py"), "--replay"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout[-600:]}\n{ended.stderr[-2000:]}"
    assert ended.stdout.count("kept inputs") == len(TARGETS)


def test_the_shares_are_a_million() -> None:
    assert sum(target.share for target in TARGETS.values()) == 1_000_000


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
@pytest.mark.parametrize(("target", "inputs"), [(name, target.share) for name, target in TARGETS.items()])
def test_inputs(target: str, inputs: int) -> None:
    assert fuzz(target, KEPT / target, inputs) == 0, f"the input lies in {KEPT / target}"
