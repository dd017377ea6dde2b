"""Activation checkpointing in a host: parts that are computed once more while a backward pass runs.

What is computed anew must be what was computed before, so a second pass (:mod:`incubation`) keeps its alphas and
stand-ins until its backward pass has ended. Source: Chen et al., "Training deep nets with sublinear memory cost"
(2016), and ``torch.utils.checkpoint``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class CannotAnswerAgain(Exception):
    """A part in front of a slot is computed anew, and which of several calls is meant cannot be told."""


def computed_anew() -> bool:
    """Whether what runs now runs inside a backward pass, as what a checkpoint computes anew does."""
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def reentrant_ones_replaced() -> Iterator[None]:
    """Within, checkpoints of the reentrant form are made in the other one.

    The reentrant form knows no gradients of chosen tensors, gives none to a seed in a part whose inputs need none, and
    warns where there are no gradients at all. Both save as much and compute the same.
    """
    module: Any = sys.modules.get("torch.utils.checkpoint")
    if module is None:
        yield
        return
    before = module.CheckpointFunction
    module.CheckpointFunction = _NotReentrant
    try:
        yield
    finally:
        module.CheckpointFunction = before


class _NotReentrant:
    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
