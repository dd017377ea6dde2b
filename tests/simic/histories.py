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
from esper.simic.session import RUN
from esper.tolaria import checkpoint

CLOCK_EVENTS = {T.PERFORMANCE_DEGRADATION, T.MEMORY_WARNING}
"""These tell of the machine, not of the run."""


def history(run: Path) -> list[tuple[Any, ...]]:
    """The folded journal without wall clock, without where it lies, and without what is said about resuming."""
    return list(_history(run))


def _history(run: Path) -> Iterator[tuple[Any, ...]]:
    for event in read_journal(run, validate=True):
        if event.producer != RUN and event.event_type not in CLOCK_EVENTS:
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


def last_state(run: Path) -> tuple[dict[str, bytes], str]:
    """Bits of every tensor of the newest checkpoint, and all else it holds: weights, optimizers, streams, governors."""
    loaded = checkpoint.load_newest(run / "checkpoints")
    return {name: bits(tensor) for name, tensor in loaded.tensors.items()}, repr(without_clock(loaded.plain))


def bits(tensor: Tensor) -> bytes:
    """A tensor's bytes, with its type and shape."""
    header = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return header + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def model_files(run: Path) -> dict[str, bytes]:
    """The exported model."""
    return {path.name: path.read_bytes() for path in sorted((run / "model").iterdir())}


def assert_same(run: Path, whole: Path) -> None:
    """``run`` equals ``whole`` bit for bit."""
    for mine, theirs in zip(history(run), history(whole), strict=False):
        assert mine == theirs
    assert len(history(run)) == len(history(whole))
    (mine_tensors, mine_plain), (their_tensors, their_plain) = last_state(run), last_state(whole)
    assert mine_tensors.keys() == their_tensors.keys()
    assert [name for name in mine_tensors if mine_tensors[name] != their_tensors[name]] == []
    assert mine_plain == their_plain
    if (whole / "model").is_dir():
        assert model_files(run) == model_files(whole)
    if (whole / "policy.safetensors").is_file():
        mine_weights, their_weights = (load_file(path / "policy.safetensors") for path in (run, whole))
        assert {name: bits(part) for name, part in mine_weights.items()} == {
            name: bits(part) for name, part in their_weights.items()
        }
