"""Stages of a seed's life and the moves that are legal between them."""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Final


class SeedStage(IntEnum):
    """Where a slot's seed stands. Travels by name, never by number."""

    DORMANT = 0
    """The slot is empty; the host runs as if there were no slot."""
    GERMINATED = 1
    """A seed was built and passed G0; nothing was trained yet."""
    TRAINING = 2
    """The seed learns behind the host (incubation)."""
    BLENDING = 3
    """Alpha ramps towards its target."""
    HOLDING = 4
    """Alpha rests at its target while evidence is gathered."""
    FOSSILIZED = 5
    """Kept for good. Terminal."""
    PRUNED = 6
    """Taken out; its parameters are gone."""
    EMBARGOED = 7
    """The slot cools down; nothing may germinate."""
    RESETTING = 8
    """The last epoch of the cool-down, after which the slot is DORMANT."""


class GateLevel(IntEnum):
    """The gate that guards each stage. There is no G4."""

    G0 = 0
    G1 = 1
    G2 = 2
    G3 = 3
    G5 = 5


_LINE = (
    SeedStage.DORMANT,
    SeedStage.GERMINATED,
    SeedStage.TRAINING,
    SeedStage.BLENDING,
    SeedStage.HOLDING,
    SeedStage.FOSSILIZED,
)

PRUNABLE: Final = frozenset({SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.HOLDING})
"""Stages from which a seed may be pruned."""

LIVE: Final = PRUNABLE | {SeedStage.FOSSILIZED}
"""Stages in which a slot holds a seed module."""

LEGAL_MOVES: Final = MappingProxyType(
    {
        **{
            stage: frozenset({following} | ({SeedStage.PRUNED} if stage in PRUNABLE else set()))
            for stage, following in zip(_LINE, _LINE[1:], strict=False)
        },
        SeedStage.HOLDING: frozenset({SeedStage.FOSSILIZED, SeedStage.BLENDING, SeedStage.PRUNED}),
        SeedStage.FOSSILIZED: frozenset[SeedStage](),
        SeedStage.PRUNED: frozenset({SeedStage.EMBARGOED}),
        SeedStage.EMBARGOED: frozenset({SeedStage.RESETTING}),
        SeedStage.RESETTING: frozenset({SeedStage.DORMANT}),
    }
)
"""stage -> the stages it may move to."""

GATE_FOR: Final = MappingProxyType(
    {
        SeedStage.GERMINATED: GateLevel.G0,
        SeedStage.TRAINING: GateLevel.G1,
        SeedStage.BLENDING: GateLevel.G2,
        SeedStage.HOLDING: GateLevel.G3,
        SeedStage.FOSSILIZED: GateLevel.G5,
    }
)
"""target stage -> the gate to pass on the way up. A ramp down, a prune and the cool-down have none."""
