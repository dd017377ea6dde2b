"""Teaching a seed that the host does not feel yet: a second pass of the part behind its slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from esper.kasmina.checkpointing import CannotAnswerAgain, reentrant_ones_replaced
from esper.kasmina.exposure import hidden
from esper.kasmina.growing import GrowingModel
from esper.kasmina.replay import Tape
from esper.kasmina.trial import buffers_kept, device_of, random_kept


def probe_backward(
    model: GrowingModel,
    tape: Tape,
    loss_fn: Callable[[Any], Tensor],
    slot_id: str,
    gradient: Tensor | None = None,
) -> Tensor:
    """Loss of the recorded batch (a scalar without a graph) with the slot's seed at alpha 1; its gradient is added to
    the seed's ``.grad``.

    See :func:`probe_gradients`. Call it before the optimizer steps, since the tape belongs to the weights it was
    recorded with.
    """
    loss, gradients = probe_gradients(model, tape, loss_fn, slot_id, gradient)
    for parameter, found in gradients:
        if parameter.grad is None:
            parameter.grad = found
        else:
            parameter.grad.add_(found)
    return loss.detach()


def probe_gradients(
    model: GrowingModel,
    tape: Tape,
    loss_fn: Callable[[Any], Tensor],
    slot_id: str,
    gradient: Tensor | None = None,
) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
    """Loss of the recorded batch with the slot's seed at alpha 1, and its gradient by parameter of the seed.

    ``gradient`` is that of what is minimised with respect to the loss (default: 1): what a loss is multiplied by on its
    way to ``backward``, a scale or a share of several micro-batches, reaches the seed as it reaches the host.

    The part behind the slot runs once more, from what the tape holds of the part in front, or as a whole pass where
    that cannot be shared. The host is a constant to it: no gradient of a host parameter is computed, buffers (all but
    the seed's own) and random number streams are afterwards as before. ``loss_fn`` maps the model's output to a scalar;
    the state of autocast is that of the recorded pass. Parts behind checkpoints are computed anew in its backward pass.
    """
    own = model.slots[slot_id].seed
    others = [part.seed for slot in model.slots.values() for part in slot.parts() if part.seed is not own]
    kept = [*model.buffered, *(module for seed in others for module in seed.modules())]
    parameters = [parameter for parameter in model.seed_parameters(slot_id) if parameter.requires_grad]

    def autocast_loss(output: Any) -> Tensor:
        with tape.autocast.entered():
            return loss_fn(output)

    def taught(whole: bool) -> tuple[Tensor, Sequence[Tensor | None]]:
        # the output is not held on to: it is no longer needed when the gradient is computed
        with (
            random_kept(device_of(model)),
            buffers_kept(kept),
            hidden(model.exposures),
            reentrant_ones_replaced(),
            torch.enable_grad(),
            tape.replaying(slot_id, {slot_id: 1.0}, whole) as again,
        ):
            loss = autocast_loss(again())
            if not loss.requires_grad:
                return loss, ()
            return loss, torch.autograd.grad(loss, parameters, gradient, allow_unused=True)

    try:
        loss, gradients = taught(whole=False)
    except CannotAnswerAgain:
        loss, gradients = taught(whole=True)
    found = zip(parameters, gradients, strict=False)
    return loss, [(parameter, its) for parameter, its in found if its is not None]
