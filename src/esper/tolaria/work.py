"""What a training step costs: its own passes, and the second pass of each seed that learns behind the host.

Nothing is inferred from the forward pass: a trial step is made, backward too, and what runs is counted. A frozen part
in front of all that learns has no backward pass, one behind it half of one, and a first layer gives no gradient to its
inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.kasmina.checkpointing import reentrant_ones_replaced
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_gradients
from esper.kasmina.macs import counting
from esper.kasmina.structure import tensors
from esper.kasmina.trial import buffers_kept, device_of, mode, random_kept
from esper.tolaria import ledger


@dataclass(frozen=True, slots=True)
class StepMacs:
    """MACs of a step for one example of its batch."""

    forward: int
    backward: int
    inside: Mapping[str, int]
    """Of the forward pass, by seed id, those in the seed."""
    probe: Mapping[str, int]
    """By id of a seed that learns behind the host: its second pass, forward and backward."""

    def backward_inside(self) -> dict[str, int]:
        """Of the backward pass, by seed id, those in the seed: twice its forward pass, of no more than there is."""
        twice = 2 * sum(self.inside.values())
        return {seed_id: 2 * n * min(twice, self.backward) // twice for seed_id, n in self.inside.items() if n}


def count_step(model: GrowingModel, run: Callable[[], Any], examples: int, probing: Sequence[str]) -> StepMacs:
    """Count a step of ``model``: ``run()`` is a forward pass over ``examples`` examples.

    The backward pass begins at everything in the output that has a gradient; what is inside a checkpoint counts once.
    Model and random generators are left as they were. Where the output has no gradient although something learns, as
    where it is a figure alone, the backward pass is taken for twice the forward pass.
    """
    behind = {slot_id: state.seed_id for slot_id in probing if (state := model.slots[slot_id].state) is not None}
    seeds = {seed_id: part.seed for seed_id, (_, part) in model.parts.items() if seed_id not in behind.values()}
    forward = ledger.count(run, examples, seeds, model=model)
    learning = [*model.host_parameters(), *(p for seed in seeds.values() for p in seed.parameters())]
    learning = [parameter for parameter in learning if parameter.requires_grad]
    probe: dict[str, int] = {}
    with (
        mode(model, False),
        random_kept(device_of(model)),
        buffers_kept(model.modules()),
        reentrant_ones_replaced(),
        torch.enable_grad(),
    ):
        with counting() as counter, model.record(probing) as tape:
            output = run()
            backward = None
            begun = counter.total
            if learning and (outputs := _reached(output)):
                torch.autograd.grad(outputs, learning, [torch.ones_like(each) for each in outputs], allow_unused=True)
                backward = counter.total - begun
        for slot_id, seed_id in behind.items():
            with counting() as counter:
                probe_gradients(model, tape, summed, slot_id)
            probe[seed_id] = ledger.share(counter.total, examples)
    if backward is None:
        backward = ledger.backward(forward.forward) * examples if learning else 0
    return StepMacs(forward.forward, ledger.share(backward, examples), forward.inside, probe)


def _reached(output: Any) -> list[Tensor]:
    """Tensors of an output that have a gradient."""
    return [tensor for _, tensor in tensors(output) if tensor.requires_grad]


def summed(output: Any) -> Tensor:
    """The sum of all in an output that has a gradient, for passes that are made to be counted."""
    parts = [torch.view_as_real(each) if each.is_complex() else each for each in _reached(output)]
    return sum((part.sum() for part in parts), torch.zeros((), device=parts[0].device if parts else None))
