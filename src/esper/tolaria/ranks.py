"""The processes that train together: how many there are."""

from __future__ import annotations

import os

import torch.distributed as dist

from esper.leyline import UsageError


def started() -> int:
    """How many processes train together: those of torch's process group, or as ``torchrun`` started this one among."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def require_one(what: str) -> None:
    """Raise ``UsageError`` where several processes train together, which ``what`` does not take part in: each would
    grow a host of its own."""
    if (ranks := started()) > 1:
        raise UsageError(
            f"{what} runs in {ranks} processes that train together (torch.distributed, torchrun); legal: one, since "
            "each would measure and grow by itself, and their models drift apart"
        )
