"""Never grows: the host alone, as the control arm."""

from __future__ import annotations

from esper.leyline import WAIT, Decision, RowView
from esper.tamiyo.policies.base import RowPolicy


class StaticPolicy(RowPolicy):
    """Waits for ever."""

    name = "static"

    def decide_row(self, row: int, view: RowView) -> Decision:
        """WAIT."""
        return Decision(WAIT, "the static host never grows")
