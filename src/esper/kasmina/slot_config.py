"""What a slot is made with, and what is stamped on what it says."""

from __future__ import annotations

from dataclasses import dataclass

from esper.kasmina.layer import Fit
from esper.kasmina.layout import Layout
from esper.kasmina.state import Incubation
from esper.leyline import UsageError


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """How a slot works; everything a seed cannot change."""

    layout: Fit = Layout.NCHW
    """The axes of the feature, or the module beside which a seed grows."""
    incubation: Incubation = Incubation.PROBE
    embargo_epochs: int = 2
    """Epochs in EMBARGOED after a prune."""
    detach_epochs: int = 3
    """Epochs of TRAINING in which a grafted seed sees the host without a path back to it."""
    generations: int = 1
    """Most seeds that the slot keeps. It opens again when one was kept, until it has kept so many."""

    fold: bool = True
    """Whether a linear seed beside a module becomes part of the module's weight on export."""
    copies: bool = False
    """Whether copies of the host's blocks may grow: these are then looked for when the host is wrapped."""

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise UsageError(f"a slot that keeps {self.generations} seeds; legal: from 1")
        if self.embargo_epochs < 1 or self.detach_epochs < 0:
            raise UsageError(
                f"embargo of {self.embargo_epochs}, detachment for {self.detach_epochs} epochs; legal: from 1, from 0"
            )


@dataclass(frozen=True, slots=True)
class EventStamp:
    """Where and when: copied onto every event, and the age of every fact that is recorded."""

    env_id: int | None = None
    episode: int | None = None
    epoch: int | None = None
