"""What the integrations share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from esper.kasmina.structure import tensors
from esper.leyline import UsageError
from esper.run.together import NOTHING_LOST, ON_OTHERS, UNSEEN
from esper.tolaria.ranks import started


def examples_in(batch: Any) -> int:
    """Length of the first tensor that has one; 1 where none has."""
    return next((len(tensor) for _, tensor in tensors(batch) if tensor.ndim > 0), 1)


def undivided(loader: Any) -> tuple[Any, int]:
    """All of what a loader gives each of several ranks a share of, and how many shares that were.

    Growth is judged by all of validation, of which no example may count twice; ranks share its batches out themselves.
    Raises ``UsageError`` where the whole cannot be known.
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler):
        return loader, 1
    if type(sampler) is not DistributedSampler or loader.batch_size is None:
        raise UsageError(
            f"validation is shared out to ranks by a {type(sampler).__name__}, and growth is judged by all of it:"
            " GrowCallback(val=loader), the same on every rank"
        )
    kept = ("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "prefetch_factor")
    again = {name: getattr(loader, name) for name in (*kept, "multiprocessing_context")}
    return DataLoader(loader.dataset, shuffle=False, **again), sampler.num_replicas


def goes_on_from(checkpoint: Path | None, call: str) -> str:
    """What to do where a rank was lost; ``call`` has a place for the newest checkpoint that is whole."""
    if checkpoint is None:
        return f"{UNSEEN}; without one training begins anew"
    return f"{NOTHING_LOST}: {call.format(str(checkpoint))} goes on, {ON_OTHERS}"


def require_known(processes: int, framework: str) -> None:
    """Raise ``UsageError`` where a framework trains in one process by itself, and others train beside it."""
    if started() != processes:
        raise UsageError(
            f"{framework} knows of {processes} process{'es' if processes > 1 else ''}, and {started()} were started to"
            " train together (torchrun); legal: as many, or a start without torchrun"
        )


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, the object ``owner`` has ``value`` of its own under ``name``, in front of what its class has."""
    own = vars(owner)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            own.pop(name, None)
        else:
            own[name] = before
