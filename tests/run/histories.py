"""What two runs of the same kind must have in common, however often one of them was cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.tolaria import checkpoint

CLOCK_EVENTS = {T.PERFORMANCE_DEGRADATION, T.MEMORY_WARNING}
"""These tell of the machine, not of the run."""


def history(run: Path) -> list[tuple[Any, ...]]:
    """The folded journal without wall clock, without where it lies, and without what is said about resuming."""
    return list(_history(run))


def _history(run: Path) -> Iterator[tuple[Any, ...]]:
    for event in read_journal(run, validate=True):
        if event.producer == "train" and event.event_type not in CLOCK_EVENTS:
            yield _told(event, run)


def _told(event: TelemetryEvent, run: Path) -> tuple[Any, ...]:
    data = {key: value for key, value in without_clock(event.data).items() if key != "run_id"}
    if "path" in data:
        data["path"] = str(Path(data["path"]).relative_to(run))
    place = (event.episode, event.epoch, event.env_id, event.slot_id, event.seed_id)
    return event.event_type.name, event.producer, event.seq, *place, event.severity, event.message, repr(data)


def without_clock(plain: Any) -> Any:
    """Without everything that is measured in seconds. ``repr`` of the rest tells NaN and -0.0 apart."""
    if isinstance(plain, dict):
        return {key: without_clock(value) for key, value in plain.items() if not _is_time(key)}
    return [without_clock(value) for value in plain] if isinstance(plain, list) else plain


def _is_time(key: Any) -> bool:
    return isinstance(key, str) and (key in ("seconds", "cpu_seconds", "fps", "times") or key.endswith("_ms"))


def saved_steps(run: Path) -> dict[int, Path]:
    """Step -> checkpoint."""
    return {int(path.name.rpartition("-")[2]): path for path in (run / "checkpoints").iterdir()}


def saved_state(path: Path) -> tuple[dict[str, bytes], str]:
    """Bits of every tensor of a checkpoint, and all else it holds: weights, optimizers, streams, governors."""
    loaded = checkpoint.load(path)
    return {name: bits(tensor) for name, tensor in loaded.tensors.items()}, repr(without_clock(loaded.plain))


def bits(tensor: Tensor) -> bytes:
    """A tensor's bytes, with its type and shape."""
    header = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return header + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def model_files(run: Path) -> dict[str, bytes]:
    """The exported model."""
    return {path.name: path.read_bytes() for path in sorted((run / "model").iterdir())}


def difference(one: str, other: str) -> str:
    """Both from shortly before where they part."""
    at = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    return f"{one[max(0, at - 100) : at + 100]!r} and {other[max(0, at - 100) : at + 100]!r}"


def assert_same(run: Path, whole: Path) -> None:
    """``run`` equals ``whole`` bit for bit."""
    mine, theirs = history(run), history(whole)
    for pair in zip(mine, theirs, strict=False):
        assert pair[0] == pair[1], pair
    assert len(mine) == len(theirs)
    last = max(saved_steps(whole))
    (tensors, plain), (their_tensors, their_plain) = (saved_state(saved_steps(each)[last]) for each in (run, whole))
    assert tensors.keys() == their_tensors.keys()
    different = [name for name in tensors if tensors[name] != their_tensors[name]]
    assert not different, different
    assert plain == their_plain, difference(plain, their_plain)
    if (whole / "model").is_dir():
        assert model_files(run) == model_files(whole)
    if (whole / "policy.safetensors").is_file():
        weights, their_weights = (load_file(path / "policy.safetensors") for path in (run, whole))
        assert all(bits(weights[name]) == bits(part) for name, part in their_weights.items())
