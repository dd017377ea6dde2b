"""What training and evaluation of an env took, into its ledger: of all ranks, and without what was played back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from esper.leyline import AlphaConfig
from esper.tolaria.evaluation import Evaluation

if TYPE_CHECKING:
    from esper.tolaria.trainer import Trainer


def charge(
    trainer: Trainer, purpose: str, examples: int, each: int, seeds: Mapping[str, int] | None = None, saved: int = 0
) -> None:
    """Book the MACs of so many examples, less those ``saved``; ``seeds`` has a seed's part of ``each``, by seed id."""
    by_seed = {seed_id: examples * macs for seed_id, macs in (seeds or {}).items()}
    trainer.ledger.charge(purpose, examples * each - saved, by_seed)


def training(trainer: Trainer, examples: int, probing: Sequence[str]) -> None:
    """An epoch of training, in which the seeds in ``probing`` learned behind the host."""
    step, (_, saved) = trainer.step_macs(tuple(probing)), _played_back(trainer)
    charge(trainer, "train_forward", examples, step.forward, step.inside, saved)
    charge(trainer, "train_backward", examples, step.backward, step.backward_inside())
    for seed_id, work in step.probe.items():
        charge(trainer, "probe", examples, work, {seed_id: work})


def evaluation(trainer: Trainer, found: Evaluation, split: str, first: AlphaConfig) -> None:
    """An evaluation. Passes are counted in those of the ``first`` configuration, in which a seed at alpha 0 does no
    work.
    """
    whole = trainer.macs.forward
    for slot_id, slot in trainer.model.slots.items():
        if slot.state is not None and first.get(slot_id, slot.alpha) == 0.0:
            whole -= trainer.macs.inside.get(slot.state.seed_id, 0)
    missed, saved = _played_back(trainer)
    if split == "test":
        charge(trainer, "test", found.examples, whole, saved=saved)
        return
    once = min(saved, trainer.prefix.macs * max(0, found.examples - missed))
    charge(trainer, "validation", found.examples, whole, saved=once)
    again = round((found.passes - 1.0) * whole * found.examples)
    trainer.ledger.charge("counterfactual", max(0, again - (saved - once)))


def _played_back(trainer: Trainer) -> tuple[int, int]:
    """Examples of passes that were made in full, and MACs that were not made, since the last time."""
    misses, saved = zip(*trainer.ranks.all(trainer.prefix.taken()), strict=True)
    return sum(misses), sum(saved)
