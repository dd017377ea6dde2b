"""What may depend on what: which parts of a feature a seed may bring together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Positions(StrEnum):
    """Which other positions (of time or space) one position may depend on; each value allows those before it."""

    NONE = "none"
    CAUSAL = "causal"
    """Earlier ones."""
    ANY = "any"


@dataclass(frozen=True, slots=True)
class SiteMixing:
    """What a seed at a site may bring together: what the host brings together anyway, as measured.

    ``None`` is what could not be measured, or what the site has none of.
    """

    positions: Positions | None
    """``None`` for a feature without positions."""
    channels: bool = True
    """Not where the host keeps the features of an example apart, or where its channels are positions in disguise."""
    examples: bool = False
    padding: bool | None = None
    """Whether what stands at padded positions reaches others in the host. Where not, ``positions`` respects it."""
    first_alone: bool = False
    """Whether the host reads nothing of what is behind the site but its first position, which sees no other through a
    seed that looks back only."""
    cached: bool = False
    """Whether a key-value cache reaches the site: a seed without one would forget what came before."""
    copies: bool = False
    """Whether a copy of the block in front mixes nothing that the host keeps apart."""
