"""What the policies share: one decision per row, and a state that can be written to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper.leyline import DataError, Decision, RowSpec, RowView


class RowPolicy:
    """A policy that looks at one row at a time. Implements :class:`esper.leyline.Policy`.

    What decides from the view alone overrides ``decide_row`` and nothing else.
    """

    name: str

    def reset(self, specs: Sequence[RowSpec]) -> None:
        """Forget everything; one decision per spec is asked from now on."""

    def decide(self, views: Sequence[RowView]) -> list[Decision]:
        """One legal action per view, with the reason for it."""
        return [self.decide_row(row, view) for row, view in enumerate(views)]

    def decide_row(self, row: int, view: RowView) -> Decision:
        """The decision for row ``row``."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What it remembers of the episode, JSON-able; empty when a view alone decides."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`. Raises ``DataError`` for the state of another policy."""
        if state:
            raise DataError(f"policy {self.name} remembers nothing, and was given a state with {', '.join(state)}")
