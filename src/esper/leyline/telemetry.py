"""The event envelope and the names of all events."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Annotated, Any, Final, Literal

import msgspec

SCHEMA_VERSION: Final = 1
"""Version of the envelope and the payloads, written into every journal header."""

Severity = Literal["debug", "info", "warning", "error", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("debug", "info", "warning", "error", "critical")


Seconds = Annotated[float, msgspec.Meta(ge=-1e11, le=1e11)]
"""Of a clock: three thousand years either way, which every calendar has."""
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A whole number that JSON readers in any language keep."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Delivery(StrEnum):
    """What happens to an event when a sink cannot keep up."""

    MUST_KEEP = auto()
    """The producer waits, then fails loudly."""
    LATEST_WINS = auto()
    """A newer one of the same key replaces it; the replaced one is counted."""
    SAMPLED = auto()
    """Decimated at the source; what is left out is counted."""


class _ByName(StrEnum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> str:
        return name


class TelemetryEventType(_ByName):
    """Every event there is. The value on the wire is the name."""

    # the life of a seed
    SEED_GERMINATED = auto()
    SEED_GATE_EVALUATED = auto()
    SEED_STAGE_CHANGED = auto()
    SEED_ALPHA_RETARGETED = auto()
    SEED_FOSSILIZED = auto()
    SEED_PRUNED = auto()
    SLOT_REOPENED = auto()
    TRANSITION_VETOED = auto()
    ISOLATION_VIOLATION = auto()

    # a run and its episodes
    TRAINING_STARTED = auto()
    TRAINING_ENDED = auto()
    EPISODE_STARTED = auto()
    EPISODE_ENDED = auto()
    EPOCH_COMPLETED = auto()
    COMMAND_ISSUED = auto()
    COMMAND_EXECUTED = auto()
    COMMAND_FAILED = auto()
    MODEL_EXPORTED = auto()

    # what was measured
    COUNTERFACTUAL_COMPUTED = auto()
    COUNTERFACTUAL_UNAVAILABLE = auto()
    PROMISES_MEASURED = auto()
    ANALYTICS_SNAPSHOT = auto()
    COMPUTE_SPENT = auto()

    # a policy that learns
    PPO_UPDATE_COMPLETED = auto()
    REWARD_COMPUTED = auto()
    REWARD_HACKING_SUSPECTED = auto()
    PLATEAU_DETECTED = auto()
    DEGRADATION_DETECTED = auto()
    IMPROVEMENT_DETECTED = auto()
    RATIO_EXPLOSION_DETECTED = auto()
    RATIO_COLLAPSE_DETECTED = auto()
    VALUE_COLLAPSE_DETECTED = auto()
    NUMERICAL_INSTABILITY_DETECTED = auto()
    HEAD_COLLAPSE_DETECTED = auto()

    # the machine
    MEMORY_WARNING = auto()
    PERFORMANCE_DEGRADATION = auto()

    # safety
    GOVERNOR_SNAPSHOT = auto()
    GOVERNOR_PANIC = auto()
    GOVERNOR_ROLLBACK = auto()
    CHECKPOINT_SAVED = auto()
    CHECKPOINT_LOADED = auto()
    WORKER_REPLACED = auto()
    RANKS_DIFFER = auto()

    # telemetry about telemetry
    TELEMETRY_DROPPED = auto()
    TELEMETRY_LEVEL_SET = auto()


class TelemetryEvent(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One thing that happened.

    The hub stamps ``timestamp``, ``t_mono``, ``producer`` and ``seq`` where they are ``None``. ``seq`` counts up by one
    per producer, so that a gap is a loss. ``epoch`` counts from 1; 0 is the time before the first epoch.
    """

    event_type: TelemetryEventType
    timestamp: Seconds | None = None
    """Wall clock, seconds since 1970."""
    t_mono: Seconds | None = None
    """Monotonic clock, seconds; comparable only within one producer."""
    producer: str | None = None
    seq: Seq | None = None
    schema: int = SCHEMA_VERSION
    episode: Count | None = None
    epoch: Count | None = None
    env_id: Count | None = None
    slot_id: str | None = None
    seed_id: str | None = None
    severity: Severity = "info"
    message: str = ""
    data: dict[str, Any] = {}

    @property
    def event_id(self) -> str:
        """``producer:seq``, unique within a run. Raises ``ValueError`` before the hub has stamped the event."""
        if self.producer is None or self.seq is None:
            raise ValueError(f"{self.event_type} has not been emitted yet: no producer and seq")
        return f"{self.producer}:{self.seq}"
