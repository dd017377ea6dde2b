"""Rows of an episode as they were between two epochs, apart from the executor that they were saved from.

The layout of what :meth:`~esper.tolaria.executor.Executor.state` returns is known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esper.leyline import RowSpec
from esper.tolaria.nested import State, join, plain_state, split


@dataclass(frozen=True, slots=True)
class SavedRows:
    """One state per row, all of the same epoch. ``take`` and ``join`` copy nothing."""

    epoch: int
    specs: tuple[RowSpec, ...]
    rows: tuple[State, ...]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> SavedRows:
        """Undo of :meth:`state`. Raises ``DataError`` or ``KeyError`` for a state of another kind."""
        parts = split(state)
        clock = parts["clock"]["plain"]
        specs = tuple(RowSpec(**spec) for spec in clock["rows"])
        return cls(clock["epoch"], specs, tuple(parts[f"row{i}"] for i in range(len(specs))))

    def state(self) -> State:
        """As it is stored."""
        clock = plain_state({"epoch": self.epoch, "rows": [asdict(spec) for spec in self.specs]})
        return join({"clock": clock, **{f"row{i}": row for i, row in enumerate(self.rows)}})

    def take(self, rows: Iterable[int]) -> SavedRows:
        """These rows alone, in this order, counted from 0."""
        wanted = list(rows)
        return SavedRows(self.epoch, tuple(self.specs[i] for i in wanted), tuple(self.rows[i] for i in wanted))

    @classmethod
    def join(cls, parts: Sequence[SavedRows], specs: Sequence[RowSpec] | None = None) -> SavedRows:
        """The rows of all parts, in their order; ``specs`` is who they are from now on (default: who they were).

        Raises ``ValueError`` where there are no parts, their epochs differ, or there are not as many specs as rows.
        """
        epochs = {part.epoch for part in parts}
        if len(epochs) != 1:
            raise ValueError(f"rows of the epochs {sorted(epochs)} cannot be joined; one epoch is needed")
        rows = tuple(row for part in parts for row in part.rows)
        named = tuple(spec for part in parts for spec in part.specs) if specs is None else tuple(specs)
        if len(named) != len(rows):
            raise ValueError(f"{len(named)} specs for {len(rows)} rows")
        return cls(epochs.pop(), named, rows)
