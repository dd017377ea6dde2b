"""What a bench is asked to do, and what its arms may choose by tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from esper.leyline import UsageError


class Initial(StrEnum):
    """How a seed that is there from the start begins."""

    IDENTITY = "identity"
    """As it is born: its last layer is zero."""
    DEFAULT = "default"
    """Its last layer initialised like any other, as whoever builds the network by hand would have it."""


@dataclass(frozen=True, slots=True)
class TrialSetting:
    """One trial of the tuning."""

    lr: float = 1.0
    """Learning rate of the host, a multiple of the task's."""
    seed_lr: float | None = None
    """Learning rate of a seed, a multiple of the host's; ``None`` is the task's own."""
    restart: bool = False
    """Whether the host's cosine starts again when a seed is born."""
    quick: bool = False
    """Whether the gates ask for one epoch in TRAINING and one in HOLDING, and not for their usual number."""
    at: float = 0.0
    """A share of the epochs: when seeds are inserted, for arms that insert at a fixed time; for a search how long it
    trains a topology."""
    initial: Initial = Initial.IDENTITY

    def label(self) -> str:
        """What differs from the task's own setting, in words."""
        parts = [f"lr x{self.lr:g}"]
        parts += [] if self.seed_lr is None else [f"seed lr x{self.seed_lr:g}"]
        parts += ["restart"] if self.restart else []
        parts += ["quick gates"] if self.quick else []
        parts += [f"at {self.at:.0%}"] if self.at else []
        parts += [f"{self.initial} init"] if self.initial is not Initial.IDENTITY else []
        return ", ".join(parts)


class Family(StrEnum):
    """What an arm may tune."""

    HOST = "host"
    SCRATCH = "scratch"
    POLICY = "policy"
    PLACED = "placed"
    INSERTION = "insertion"
    STACKING = "stacking"
    SEARCH = "search"
    ADAPTER = "adapter"
    FULL = "full"


def _crossed(rates: tuple[float, ...], *others: Mapping[str, Any]) -> tuple[TrialSetting, ...]:
    return tuple(replace(TrialSetting(lr=rate), **other) for rate in rates for other in others)


GRIDS: Final[Mapping[Family, tuple[TrialSetting, ...]]] = {
    Family.HOST: _crossed((1.0, 4.0, 2.0, 8.0, 16.0, 0.5, 32.0, 0.25), {}),
    Family.SCRATCH: _crossed((2.0, 4.0, 1.0, 8.0), {"seed_lr": 1.0}, {"seed_lr": 1.0, "initial": Initial.DEFAULT}),
    Family.POLICY: _crossed((2.0, 4.0, 1.0, 8.0), {"seed_lr": 1.0}, {"seed_lr": 1.0, "quick": True}),
    # seeds beside what is held learn at the rate of an adapter
    Family.PLACED: _crossed((4.0, 1.0, 2.0, 8.0, 0.5, 16.0, 0.25, 0.125), {"seed_lr": 1.0}),
    # what is adapted takes some ten times the rate of what is fine-tuned
    Family.ADAPTER: _crossed((4.0, 1.0, 2.0, 8.0, 0.5, 16.0, 0.25, 0.125), {}),
    Family.FULL: _crossed((0.25, 0.0625, 0.125, 0.5, 1.0, 0.03125, 2.0, 0.015625), {}),
    Family.SEARCH: _crossed(
        (2.0, 4.0, 1.0, 8.0),
        {"seed_lr": 1.0, "initial": Initial.DEFAULT, "at": 0.1},
        {"seed_lr": 1.0, "initial": Initial.DEFAULT, "at": 0.3},
    ),
    Family.STACKING: _crossed((2.0, 4.0, 1.0, 8.0), {"seed_lr": 1.0, "at": 0.5}, {"seed_lr": 1.0, "at": 0.7}),
    Family.INSERTION: _crossed((2.0, 4.0, 1.0, 8.0), {"seed_lr": 1.0, "at": 0.1}, {"restart": True, "at": 0.3}),
}
"""Settings in the order in which they are tried; all families have as many, so that every arm gets equal trials."""

MOST_TRIALS: Final = min(map(len, GRIDS.values()))


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """One bench. Two with the same values but for ``arms``, ``grown``, ``seeds`` and ``workers`` may share a run
    directory."""

    task: str = "digits"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the task, such as numbers of examples."""
    arms: tuple[str, ...] = ()
    grown: str = "frugal"
    """The arm whose multiply-accumulates the equal-compute arms get, and whose end topology is retrained."""
    seeds: int = 10
    epochs: int | None = None
    """Of every arm that is not held to equal compute; ``None`` is the task's own number."""
    trials: int = MOST_TRIALS
    """Settings that every arm may try, each on every tuning seed."""
    tuning_seeds: int = 2
    seed: int = 0
    resplit: bool = False
    """Whether each seed draws a split of its own, by the task's option ``split``: intervals then hold for other
    examples too, not for those of one small test split alone."""
    policy: str | None = None
    """File of a learned policy, for the arm ``policy``."""
    device: str = "cpu"
    workers: int | None = None
    """Processes; ``None`` is one a core."""

    def __post_init__(self) -> None:
        for name in ("seeds", "tuning_seeds"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("epochs", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 1 <= self.trials <= MOST_TRIALS:
            raise UsageError(f"trials is {self.trials}; legal: 1 to {MOST_TRIALS}, the settings that every arm has")


DEFAULT: Final = BenchConfig()
