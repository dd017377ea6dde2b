"""Where the process's own random generators stand: those of ``random``, numpy and torch, from which user code draws."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator


def process_state() -> dict[str, Any]:
    """Where they stand: ``{"tensors": ..., "plain": JSON-able}``."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    key = torch.from_numpy(np.array(numpy["state"]["key"]))
    accelerators = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors = {"torch": torch.get_rng_state(), "numpy": key}
    tensors |= {f"cuda{i}": state for i, state in enumerate(accelerators)}
    counters = {"pos": int(numpy["state"]["pos"]), "has_gauss": int(numpy["has_gauss"]), "gauss": float(numpy["gauss"])}
    return {"tensors": tensors, "plain": {"random": [version, list(words), gauss], "numpy": counters}}


def load_process(state: Mapping[str, Any]) -> None:
    """Undo of :func:`process_state`; accelerators' generators where there are as many here as there were."""
    tensors, plain = state["tensors"], state["plain"]
    version, words, gauss = plain["random"]
    random.setstate((version, tuple(words), gauss))
    numpy = plain["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy(), numpy["pos"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(tensors["torch"])
    devices = sum(name.startswith("cuda") for name in tensors)
    if devices and devices == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensors[f"cuda{i}"] for i in range(devices)])


@contextmanager
def process_kept(also: Any = None) -> Iterator[None]:
    """They are afterwards as before, and so is the attribute ``generator`` of ``also``, where it has one."""
    own = getattr(also, "generator", None)
    before = process_state()
    state = own.get_state() if isinstance(own, Generator) else None
    try:
        yield
    finally:
        load_process(before)
        if state is not None:
            own.set_state(state)  # type: ignore[union-attr]
