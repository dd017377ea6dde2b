"""Layout of the observation: every feature with its name, range, unit, and whether it can be unknown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """One number that a policy sees. When ``optional``, a known-flag (0 or 1) follows it in the vector."""

    name: str
    low: float
    high: float
    unit: str
    optional: bool = False

    @property
    def width(self) -> int:
        """Entries in the vector."""
        return 2 if self.optional else 1


@dataclass(frozen=True, slots=True)
class ObservationLayout:
    """Host features once, then slot features for each slot in the run's order.

    The same layout serves any number of slots; what a slot holds is also given as a blueprint index beside the vector,
    so that identity can be embedded instead of one-hot encoded.
    """

    host: tuple[Feature, ...]
    slot: tuple[Feature, ...]

    @property
    def host_width(self) -> int:
        """Entries of the host part."""
        return sum(feature.width for feature in self.host)

    @property
    def slot_width(self) -> int:
        """Entries of one slot's part."""
        return sum(feature.width for feature in self.slot)

    def width(self, slots: int) -> int:
        """Entries of the whole vector for ``slots`` slots."""
        return self.host_width + slots * self.slot_width

    def names(self, slots: tuple[str, ...]) -> tuple[str, ...]:
        """Name of every entry, in order; a known-flag is called ``<name>.known``."""
        columns = [("host", feature) for feature in self.host]
        columns += [(slot, feature) for slot in slots for feature in self.slot]
        return tuple(
            entry
            for owner, feature in columns
            for entry in (
                (f"{owner}.{feature.name}", f"{owner}.{feature.name}.known")
                if feature.optional
                else (f"{owner}.{feature.name}",)
            )
        )
