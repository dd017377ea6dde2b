"""Stacks are tried offline."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its state in the process, and knows one precision at a time."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
