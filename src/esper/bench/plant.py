"""Seeds put into a network at once and for good: for networks trained from scratch, and for growth at a fixed time.

    plant(trainer, [Planted("block0", "conv5", seed=7)])

There is no incubation, no gate and no counterfactual: the seed is part of the network, at alpha 1, from the next step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from esper.bench.settings import Initial
from esper.kasmina.clone import Clone
from esper.kasmina.slot import SeedSlot
from esper.kasmina.trial import mode
from esper.leyline import EsperError, SeedStage, UsageError
from esper.tamiyo.policies.heuristic import FRUGAL_SIZE, first_in_turn
from esper.tolaria import ledger
from esper.tolaria.rng import derive, seeded
from esper.tolaria.trainer import Trainer

STACKED: Final = "clone"
"""The blueprint of a plain copy."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A seed to be: its slot, its blueprint, and the seed of the draw of its weights."""

    slot: str
    blueprint: str
    seed: int


def plant(
    trainer: Trainer,
    seeds: Iterable[Planted],
    initial: Initial = Initial.IDENTITY,
    stage: SeedStage = SeedStage.FOSSILIZED,
) -> None:
    """Put ``seeds`` into their slots, which must be empty, at alpha 1, each with its parameter group: for good, or in
    HOLDING, so that what is delivered goes without those that validation does not miss.
    """
    for each in seeds:
        slot = trainer.model.slots[each.slot]
        _germinate(slot, each, initial)
        assert slot.state is not None
        slot.state.alpha = 1.0
        slot.state.enter(stage, trainer.completed)
        trainer.adopt(slot.state.seed_id)


def _germinate(slot: SeedSlot, each: Planted, initial: Initial) -> None:
    with seeded(each.seed):
        born = slot.germinate(each.blueprint)
        if not born.passed:
            raise EsperError(f"{each.blueprint} cannot be planted in slot {each.slot}: {born.message}")
        if initial is Initial.DEFAULT:
            assert slot.seed is not None
            initialise(slot.seed)


def initialise(seed: nn.Module) -> None:
    """Draw the weights of every layer that was zeroed at birth as torch draws them; gains of norms become 1.

    Of a copy of a block that is every layer: two blocks of a network from scratch do not begin alike. Raises
    ``UsageError`` where a parameter of a copy is in no module that draws it.
    """
    copied = isinstance(seed, Clone)
    if copied:
        for parameter in seed.parameters():
            nn.init.constant_(parameter, math.nan)  # so that what no layer draws is seen
    for drawing in ("reset_parameters", "_reset_parameters"):  # the latter, of attention, goes for its parts too
        for module in seed.modules():
            own = list(module.parameters(recurse=False))
            reset = getattr(module, drawing, None)
            zeroed = not any(bool(parameter.any()) for parameter in own)
            if callable(reset) and own and (zeroed or copied):
                reset()
    if left := [path for path, each in seed.named_parameters() if copied and bool(each.isnan().any())]:
        raise UsageError(
            f"{left[0]!r} of a copy cannot be drawn anew, so that two blocks would begin alike; legal: blocks of"
            " modules with reset_parameters()"
        )


def largest(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """slot -> its blueprint with most parameters. ``sizes``: slot -> blueprint -> parameters."""
    return {slot: max(fitting, key=fitting.__getitem__) for slot, fitting in sizes.items() if fitting}


def copies(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """slot -> a copy of the block there, where one can be made. ``sizes`` as for :func:`largest`.

    Raises ``UsageError`` where there is none.
    """
    found = {slot: STACKED for slot, fitting in sizes.items() if STACKED in fitting}
    if not found:
        raise UsageError(
            f"no copy of a block can grow in {', '.join(sizes)}; legal: a task with {STACKED!r} among its blueprints "
            "and sites behind blocks that repeat"
        )
    return found


def third(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """slot -> what the policy frugal begins with there. ``sizes`` as for :func:`largest`."""
    return {slot: first_in_turn(fitting, FRUGAL_SIZE) for slot, fitting in sizes.items() if fitting}


def teach(slots: Mapping[str, SeedSlot], born: str) -> bool:
    """Give the newborn seed in slot ``born`` the weights of the oldest living seed of its blueprint, the last layer's
    too; whether there was one whose weights fit.

    It learns behind the host first, so that what it adds is not felt before it has learned its own place.
    """
    seed, state = slots[born].seed, slots[born].state
    assert seed is not None and state is not None
    sizes = {name: value.shape for name, value in seed.state_dict().items()}
    fits = [
        (slot.state.age_epochs, slot.seed)
        for slot_id, slot in slots.items()
        if slot_id != born and slot.seed is not None and slot.state is not None
        if slot.state.blueprint_id == state.blueprint_id and slot.state.age_epochs > 0
        if {name: value.shape for name, value in slot.seed.state_dict().items()} == sizes
    ]
    if not fits:
        return False
    seed.load_state_dict(max(fits, key=lambda pair: pair[0])[1].state_dict())
    return True


def middle(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """slot -> its blueprint of middle size, of an even number the smaller one. ``sizes`` as for :func:`largest`."""
    return {
        slot: sorted(fitting, key=fitting.__getitem__)[(len(fitting) - 1) // 2]
        for slot, fitting in sizes.items()
        if fitting
    }


def by_gradient(
    trainer: Trainer, sizes: Mapping[str, Mapping[str, int]], seed: int, *, draws: int = 2
) -> list[Planted]:
    """GradMax (Evci et al., ICLR 2022) over the blueprints at hand: for each slot the blueprint and the draw whose
    gradient norm at birth is largest.

    A seed is the identity at birth, so the norm is what the first step can gain. It is measured on one batch of the
    training split in evaluation mode, without a trace but in the ledger.
    """
    inputs, targets = one_batch(trainer)
    best: dict[str, tuple[float, Planted]] = {}
    for slot_id, fitting in sizes.items():
        for blueprint in fitting:
            for draw in range(draws):
                each = Planted(slot_id, blueprint, derive(seed, "gradmax", slot_id, blueprint, draw))
                norm = _norm_at_birth(trainer, each, inputs, targets)
                if slot_id not in best or norm > best[slot_id][0]:
                    best[slot_id] = norm, each
    return [each for _, each in best.values()]


def one_batch(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of the first batch of the training split, in order."""
    with trainer.setup.splits["train"].reading(trainer.config.batch_size) as batches:
        inputs, targets, _ = next(batches)
    return inputs, targets


def _norm_at_birth(trainer: Trainer, each: Planted, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    model, forward = trainer.model, trainer.setup.forward
    with _passing(trainer, each) as slot, model.alphas({each.slot: 1.0}):
        assert slot.seed is not None
        loss = trainer.setup.criterion(forward(model, inputs), targets)
        gradients = torch.autograd.grad(loss, list(slot.seed.parameters()), allow_unused=True)
        work = ledger.count(lambda: forward(model, inputs[:2]), 2, model=model).forward
    trainer.ledger.charge("probe", len(inputs) * (work + ledger.backward(work)))
    present = [gradient for gradient in gradients if gradient is not None]
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in present])))


@contextmanager
def _passing(trainer: Trainer, each: Planted) -> Iterator[SeedSlot]:
    """Within, the seed is there; afterwards it never was."""
    slot, model = trainer.model.slots[each.slot], trainer.model
    before, tell = slot.lifecycle(), slot.on_telemetry
    slot.on_telemetry = None
    try:
        _germinate(slot, each, Initial.IDENTITY)
        with mode(model, False):
            yield slot
    finally:
        slot.load_lifecycle(before)
        slot.on_telemetry = tell
