"""Never grows: the host alone, as the control arm."""

from __future__ import annotations

from esper.leyline import WAIT, Decision, EnvView
from esper.tamiyo.policies.base import EnvPolicy


class StaticPolicy(EnvPolicy):
    """Waits for ever."""

    name = "static"

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """WAIT."""
        return Decision(WAIT, "the static host never grows")
