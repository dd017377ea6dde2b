"""Forks of a process that has computed."""

from __future__ import annotations

import os


def fork() -> int:
    """``os.fork`` of a process that has used torch; its child computes on one thread.

    OpenMP's other threads do not survive a fork: a child that counts on them waits for ever.
    """
    import torch

    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
    return child
