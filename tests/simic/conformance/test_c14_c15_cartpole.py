"""C14 and C15: CartPole beside SB3, five seeds; ``benchmarks/conformance.py`` plays the same and stores the table."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow
SEEDS = range(5)
BUDGET = 40_000
"""Steps with memory: enough for ours on every seed; SB3 takes minutes for each ten thousand."""


@pytest.fixture(scope="module")
def conformance() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "conformance.py"
    spec = importlib.util.spec_from_file_location("conformance", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


def test_c15_cartpole_takes_at_most_half_as_many_steps_again(conformance: ModuleType) -> None:
    contest, _ = conformance.contests()
    result = conformance.play(contest, SEEDS)
    assert conformance.median_steps(result.ours) < contest.budget
    assert conformance.median_steps(result.ours) <= 1.5 * conformance.median_steps(result.theirs)


def test_c14_memory_takes_at_most_twice_as_many_steps_and_is_needed(conformance: ModuleType) -> None:
    _, contest = conformance.contests()
    result = conformance.play(replace(contest, budget=BUDGET), SEEDS)
    assert conformance.median_steps(result.ours) < BUDGET
    assert conformance.median_steps(result.ours) <= 2 * conformance.median_steps(result.theirs)
    assert all(each.best < 100 for each in result.control)
