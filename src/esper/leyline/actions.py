"""Factored actions: what a policy may say in one step, and which heads each op consumes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final


class Op(IntEnum):
    """What to do this epoch. Travels by name."""

    WAIT = 0
    GERMINATE = 1
    ADVANCE = 2
    """Ask the gate of the next stage on the way up to BLENDING."""
    SET_ALPHA = 3
    """Retarget a HOLDING seed's alpha; a ramp starts."""
    PRUNE = 4
    FOSSILIZE = 5


class Blend(StrEnum):
    """Shape of the alpha ramp; every one starts and ends exactly at its end points."""

    LINEAR = "linear"
    COSINE = "cosine"
    SIGMOID = "sigmoid"


HEADS: Final = ("op", "slot", "blueprint", "blend", "alpha_target", "tempo")

RELEVANT_HEADS: Final = MappingProxyType(
    {
        Op.WAIT: frozenset({"op"}),
        Op.GERMINATE: frozenset({"op", "slot", "blueprint", "blend", "alpha_target", "tempo"}),
        Op.ADVANCE: frozenset({"op", "slot"}),
        Op.SET_ALPHA: frozenset({"op", "slot", "blend", "alpha_target", "tempo"}),
        Op.PRUNE: frozenset({"op", "slot"}),
        Op.FOSSILIZE: frozenset({"op", "slot"}),
    }
)
"""*Relevance*: the heads that an op consumes. Never to be mixed with availability (which choices are legal now)."""

BLENDS: Final = tuple(Blend)
ALPHA_TARGETS: Final = (0.5, 0.7, 1.0)
TEMPOS: Final = (1, 3, 5, 8)
"""Ramp lengths in epochs."""


@dataclass(frozen=True, slots=True)
class FactoredAction:
    """One decision for one environment. Heads that the op does not consume are ``None``."""

    op: Op = Op.WAIT
    slot: str | None = None
    blueprint: str | None = None
    blend: Blend | None = None
    alpha_target: float | None = None
    tempo: int | None = None
    incubation: str | None = None
    """How a germinating seed learns before it may be felt; no head, and ``None`` is as the run has it."""


WAIT: Final = FactoredAction()


@dataclass(frozen=True, slots=True)
class ActionSpace:
    """The choices of every head, in index order. Slots and blueprints are the run's own names, not positions."""

    slots: tuple[str, ...]
    blueprints: tuple[str, ...]
    blends: tuple[Blend, ...] = BLENDS
    alpha_targets: tuple[float, ...] = ALPHA_TARGETS
    tempos: tuple[int, ...] = TEMPOS

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices per head, in the order of :data:`HEADS`."""
        return (
            len(Op),
            len(self.slots),
            len(self.blueprints),
            len(self.blends),
            len(self.alpha_targets),
            len(self.tempos),
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's action and the reason it states for it, with the measured evidence the reason rests on."""

    action: FactoredAction
    reason: str
    evidence: tuple[tuple[str, float], ...] = ()
    macs: int = 0
    """Multiply-accumulates that deciding took; they are charged to the row."""
    also: tuple[Decision, ...] = ()
    """What is done in the same epoch after it, in this order."""
    audition: tuple[tuple[str, str], ...] = ()
    """``(slot, blueprint)`` of candidates that learn in the coming epoch, all at once and behind the host, so that the
    next view says what each of these places promises."""
    look: bool = True
    """Whether what seeds are worth is measured after the coming epoch, where the run measures then."""


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """What became of an action: ``success``, else ``why_not`` says what stood against it."""

    action: FactoredAction
    success: bool
    illegal: bool = False
    why_not: str | None = None
    look: bool = True
    """As the decision had it."""
