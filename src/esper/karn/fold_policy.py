"""Folds of a policy that acts and learns."""

from __future__ import annotations

from esper.karn.fold_common import measure
from esper.karn.state import EnvironmentFold, RunState
from esper.leyline import TelemetryEvent

UPDATE_FACTS = (
    "kl",
    "clip_fraction",
    "explained_variance",
    "entropy",
    "grad_norm",
    "lr",
    "update_time_ms",
    "mean_episode_return",
)


def update_completed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The pulse of the learner."""
    measure(state.pulse, event.data, UPDATE_FACTS, event)


def reward_computed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """What the last step of an environment paid."""
    if environment is None:
        state.unplaced += 1
        return
    parts = {f"reward.{name}": value for name, value in event.data.get("components", {}).items()}
    facts = {"reward": event.data.get("total"), "objective": event.data.get("objective"), **parts}
    measure(environment.facts, facts, facts, event)


def detected(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A detector spoke: it stands in the feed, which every event of its kind enters."""
