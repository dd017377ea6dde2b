"""What the policies share: one decision per env, and a state that can be written to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper.leyline import DataError, Decision, EnvSpec, EnvView


class EnvPolicy:
    """Base of a policy that looks at one env (a growing host) at a time.

    One that decides from the view alone overrides ``decide_env`` and nothing else; one that remembers overrides
    ``reset``, ``state`` and ``load``, too, so that a run can be resumed.
    """

    name: str
    """Under which events and reports show it."""

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Forget everything: an episode begins in every env, one per spec."""

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """One decision per view, in their order."""
        return [self.decide_env(env, view) for env, view in enumerate(views)]

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """A legal action for the env at index ``env``, as ``view`` shows it after an epoch, and the reason for it."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What it remembers of the episode, as plain data for a checkpoint; empty where the view alone decides."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave. Raises ``DataError`` for the state of another policy."""
        if state:
            raise DataError(f"policy {self.name} remembers nothing, and was given a state with {', '.join(state)}")
