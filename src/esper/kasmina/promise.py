"""Candidates: seeds that are tried in places before anything grows there, all at once.

They take part in a pass of their own, behind the host: what the host computes, its parameters and buffers, the living
seeds and the random number streams are afterwards as they were before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper.kasmina import growable
from esper.kasmina.checkpointing import reentrant_ones_replaced
from esper.kasmina.compiled import as_written
from esper.kasmina.exposure import hidden
from esper.kasmina.generations import run
from esper.kasmina.growing import GrowingModel
from esper.kasmina.isolation import added
from esper.kasmina.portable import Call
from esper.kasmina.slot import SeedSlot
from esper.kasmina.trial import buffers_kept, device_of, random_kept
from esper.leyline import UsageError


class _Standing:
    """Stands where a tap looks for its slot: what the slot does, and a candidate at alpha 1 on top."""

    bare = False

    def __init__(self, slot: SeedSlot, seed: nn.Module) -> None:
        self.slot, self.seed, self.training = slot, seed, slot.training

    def __call__(
        self, h: Tensor, alpha: float | None = None, x: Tensor | None = None, call: Call | None = None
    ) -> Tensor:
        h = self.slot(h, alpha, x, call)
        s = run(self.seed, h if x is None else x, h.dtype, call)
        return s if x is None else added(h, s, 1.0)

    def train(self, training: bool) -> None:
        """The mode of the pass."""
        self.training = training
        self.slot.train(training)
        self.seed.train(training)


class Candidates:
    """A seed for each of some empty slots, none of them in its slot."""

    def __init__(self, model: GrowingModel, chosen: Mapping[str, str]) -> None:
        """``chosen``: slot -> blueprint. Weights come from torch's global random stream.

        Raises ``UsageError`` for a slot or blueprint that is not there, and for a slot that holds a seed.
        """
        model.check_slots(chosen)
        self.model, self.chosen = model, dict(chosen)
        self.seeds: dict[str, nn.Module] = {}
        for slot_id, blueprint in chosen.items():
            slot = model.slots[slot_id]
            if slot.state is not None:
                raise UsageError(f"slot {slot_id!r} is {slot.stage.name}; candidates are for empty slots")
            seed = growable.build(slot, blueprint)
            self.seeds[slot_id] = growable.placed(seed, slot.device, slot.dtype).train()

    def parameters(self, slot_id: str) -> list[nn.Parameter]:
        """What the candidate in that slot learns."""
        return [parameter for parameter in self.seeds[slot_id].parameters() if parameter.requires_grad]

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Within, every candidate takes part in passes of the model, in training mode."""
        taps = {slot_id: self.model.taps[slot_id] for slot_id in self.seeds}
        slots = {slot_id: (tap.slot, tap.training) for slot_id, tap in taps.items()}
        try:
            for slot_id, tap in taps.items():
                tap.slot = _Standing(tap.slot, self.seeds[slot_id])  # type: ignore[assignment]
                tap.training = True
            with as_written():
                yield
        finally:
            for slot_id, tap in taps.items():
                tap.slot, tap.training = slots[slot_id]

    def gradients(self, loss: Callable[[], Tensor], scale: float = 1.0) -> dict[str, list[Tensor | None]]:
        """By slot the gradients of ``loss()``, which makes a pass of the model, in the order of :meth:`parameters`.

        The loss is multiplied by ``scale`` before the backward pass, and gradients are divided by it.
        """
        model = self.model
        living = [part.seed for _, part in model.parts.values()]
        monitors = [(slot.monitor, slot.monitor.counts) for slot in model.slots.values()]
        wanted = [(slot_id, parameter) for slot_id in self.seeds for parameter in self.parameters(slot_id)]
        found: dict[str, list[Tensor | None]] = {slot_id: [] for slot_id in self.seeds}
        modes = [(slot, slot.training) for slot in model.slots.values()]
        try:
            with (
                random_kept(device_of(model)),
                buffers_kept([*model.buffered, *(module for seed in living for module in seed.modules())]),
                hidden(model.exposures),
                reentrant_ones_replaced(),
                torch.enable_grad(),
                self.standing(),
            ):
                given = loss() * scale
                taken = torch.autograd.grad(given, [each for _, each in wanted], allow_unused=True)
        finally:
            for monitor, counts in monitors:
                monitor.counts = counts
            for slot, training in modes:
                slot.train(training)
        for (slot_id, _), gradient in zip(wanted, taken, strict=True):
            found[slot_id].append(None if gradient is None else gradient / scale)
        return found
