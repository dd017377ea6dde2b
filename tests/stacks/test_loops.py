"""Loops with a scaler and an average are plain loops."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import Way, check_checkpoint, check_gradients, check_resume, quick
from loops import Own, timm_tools, torchvision_tools

pytestmark = pytest.mark.usefixtures("without_figures")

STACKS = {
    "scaled": Own(),
    "all": Own(Way(micro=2, clip=0.05, scheduled=True)),
    "timm": Own(Way(micro=2, clip=0.05, scheduled=True), tools=timm_tools),
    "torchvision": Own(Way(clip=0.05, scheduled=True), tools=torchvision_tools),
}


@pytest.mark.parametrize("check", [check_gradients, check_checkpoint, check_resume])
@pytest.mark.parametrize("stack", quick(STACKS, "all"))
def test_a_scaled_loss_is_as_if_it_was_not(stack: Own, check: object, tmp_path: Path) -> None:
    assert callable(check)
    check(stack, tmp_path)
