"""One epoch of training as it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from esper.kasmina.growing import GrowingModel
from esper.kasmina.slot import SeedSlot
from esper.tolaria.audition import Audition
from esper.tolaria.nested import State

_PLAIN: Final = ("steps", "step", "examples", "waited", "host_norm")


@dataclass(slots=True)
class Epoch:
    """What is counted and summed up while an epoch is trained."""

    steps: int
    probing: list[str]
    """Slots whose seed learns in a second pass."""
    measured: frozenset[int]
    """Steps at which gradients are measured."""
    total: Tensor
    """Sum of the loss over examples."""
    step: int = 0
    examples: int = 0
    waited: float = 0.0
    host_norm: float | None = None
    started: float = field(default_factory=time.perf_counter)
    audition: Audition | None = None
    """Of empty places, where one goes on."""

    def state(self, slots: Mapping[str, SeedSlot]) -> State:
        """All it takes to go on in the midst of it; with what the monitors of the slots have counted in it."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain |= {"probing": list(self.probing), "measured": sorted(self.measured)}
        plain |= {"seconds": time.perf_counter() - self.started}
        plain |= {"monitors": {slot_id: slot.monitor.counts for slot_id, slot in slots.items()}}
        tensors = {"total": self.total.detach().clone()}
        if self.audition is not None:
            state = self.audition.state()
            tensors |= {f"audition/{name}": tensor for name, tensor in state["tensors"].items()}
            plain["audition"] = state["plain"]
        return {"tensors": tensors, "plain": plain}

    @classmethod
    def load(cls, state: Mapping[str, Any], model: GrowingModel, device: torch.device) -> Epoch:
        """Undo of :meth:`state`."""
        plain, slots, audition = state["plain"], model.slots, None
        if "audition" in plain:
            tensors = {n.removeprefix("audition/"): t for n, t in state["tensors"].items() if n.startswith("audition/")}
            audition = Audition.load({"tensors": tensors, "plain": plain["audition"]}, model)
        for slot_id, counts in plain["monitors"].items():
            slots[slot_id].monitor.counts = counts
        return cls(
            probing=list(plain["probing"]),
            measured=frozenset(plain["measured"]),
            total=state["tensors"]["total"].to(device).clone(),
            started=time.perf_counter() - plain["seconds"],
            audition=audition,
            **{name: plain[name] for name in _PLAIN},
        )
