"""One epoch of training as it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from esper.kasmina.growing import GrowingModel
from esper.kasmina.slot import SeedSlot
from esper.kasmina.state import Incubation
from esper.leyline import SeedStage
from esper.tasks.base import Batch
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

    def share(self, slots: Mapping[str, SeedSlot], finite: bool) -> Share:
        """What was counted here; ``finite`` says whether all weights are."""
        monitored = {slot_id: slot.monitor.counts for slot_id, slot in slots.items()}
        auditioned = 0 if self.audition is None else self.audition.examples
        return Share(float(self.total), self.examples, finite, monitored, auditioned)

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


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several ranks has counted in an epoch."""

    total: float
    """Sum of the loss over its examples."""
    examples: int
    finite: bool
    """Whether all weights are."""
    monitored: Mapping[str, tuple[int, int, float]]
    """slot -> what its isolation monitor has counted."""
    auditioned: int
    """Examples that candidates of an audition have learned from."""

    @classmethod
    def sum(cls, shares: Sequence[Share]) -> Share:
        """Of all ranks. A norm is the largest."""
        monitored = {}
        for slot_id in shares[0].monitored:
            passes, violations, norms = zip(*(share.monitored[slot_id] for share in shares), strict=True)
            worst = next((norm for norm in norms if math.isnan(norm)), max(norms))
            monitored[slot_id] = sum(passes), sum(violations), worst
        return cls(
            total=math.fsum(share.total for share in shares) if len(shares) > 1 else shares[0].total,
            examples=sum(share.examples for share in shares),
            finite=all(share.finite for share in shares),
            monitored=monitored,
            auditioned=sum(share.auditioned for share in shares),
        )

    @classmethod
    def of(cls, state: State) -> Share:
        """What :meth:`Epoch.state` has counted."""
        plain = state["plain"]
        auditioned = plain["audition"]["examples"] if "audition" in plain else 0
        return cls(float(state["tensors"]["total"]), plain["examples"], True, plain["monitors"], auditioned)

    def within(self, state: State) -> State:
        """The state of an epoch in which this was counted."""
        plain = {**state["plain"], "examples": self.examples, "monitors": dict(self.monitored)}
        if "audition" in plain:
            plain["audition"] = {**plain["audition"], "examples": self.auditioned}
        total = torch.full_like(state["tensors"]["total"], self.total)
        return State(tensors={**state["tensors"], "total": total}, plain=plain)

    def none(self) -> Share:
        """Of as many slots, and nothing counted."""
        return Share(0.0, 0, True, dict.fromkeys(self.monitored, (0, 0, 0.0)), 0)


def probing(model: GrowingModel) -> list[str]:
    """Slots whose seed learns behind the host."""
    return [
        slot_id
        for slot_id, slot in model.slots.items()
        if slot.state is not None and slot.stage is SeedStage.TRAINING and slot.state.incubation is Incubation.PROBE
    ]


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Any, Any, float]]:
    """Each batch with the seconds it kept its consumer waiting."""
    while True:
        before = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield *batch, time.perf_counter() - before
