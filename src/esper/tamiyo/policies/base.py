"""What the policies share: one decision per env, and a state that can be written to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper.leyline import DataError, Decision, EnvSpec, EnvView


class EnvPolicy:
    """A policy that looks at one env at a time. Implements :class:`esper.leyline.Policy`.

    What decides from the view alone overrides ``decide_env`` and nothing else.
    """

    name: str

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Forget everything; one decision per spec is asked from now on."""

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """One legal action per view, with the reason for it."""
        return [self.decide_env(env, view) for env, view in enumerate(views)]

    def decide_env(self, env: int, view: EnvView) -> Decision:
        """The decision for env ``env``."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """What it remembers of the episode, JSON-able; empty when a view alone decides."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`. Raises ``DataError`` for the state of another policy."""
        if state:
            raise DataError(f"policy {self.name} remembers nothing, and was given a state with {', '.join(state)}")
