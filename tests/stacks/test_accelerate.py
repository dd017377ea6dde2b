"""What Accelerate prepared is taken as it is, and a loop under it is a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate_runs import Accelerated
from kit import Way, check_checkpoint, check_gradients, check_resume, quick

pytestmark = pytest.mark.usefixtures("without_figures", "fresh_state")

STACKS = {
    "prepared": Accelerated(),
    "accumulated and clipped": Accelerated(Way(micro=2, clip=0.05)),
    "bf16": Accelerated(Way(bf16=True)),
    "all, with a schedule": Accelerated(Way(micro=2, clip=0.05, bf16=True, scheduled=True)),
}


@pytest.mark.parametrize("stack", quick(STACKS, "all, with a schedule"))
def test_gradients_are_those_of_a_plain_loop(stack: Accelerated, tmp_path: Path) -> None:
    check_gradients(stack, tmp_path)


@pytest.mark.slow
def test_save_state_loads_without_esper_and_has_the_seeds_beside(tmp_path: Path) -> None:
    check_checkpoint(STACKS["all, with a schedule"], tmp_path)


def test_load_state_goes_on_exactly(tmp_path: Path) -> None:
    check_resume(STACKS["all, with a schedule"], tmp_path)
