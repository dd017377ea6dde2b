"""The one fold behind every face: ``apply(state, event)``.

It reads no clock and draws no random number: the same events give the same state, live or a year later. The state is
owned by the fold and updated in place (2 million events must index in seconds); keep an earlier one by encoding it.

:data:`HANDLERS` has one entry per event type. A new event type gets a handler there and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Final

from esper.karn import fold_policy, fold_run, fold_seed
from esper.karn.fold_common import trim
from esper.karn.state import EnvironmentFold, ProducerFold, RunState
from esper.karn.words import severity
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T

Handler = Callable[[RunState, TelemetryEvent, EnvironmentFold | None], None]
"""Called with the environment that the event is about, ``None`` when the event does not say."""

HANDLERS: Final = MappingProxyType[T, Handler](
    {
        T.SEED_GERMINATED: fold_seed.germinated,
        T.SEED_GATE_EVALUATED: fold_seed.gate_evaluated,
        T.SEED_STAGE_CHANGED: fold_seed.stage_changed,
        T.SEED_ALPHA_RETARGETED: fold_seed.alpha_retargeted,
        T.SEED_FOSSILIZED: fold_seed.fossilized,
        T.SLOT_REOPENED: fold_seed.reopened,
        T.SEED_PRUNED: fold_seed.pruned,
        T.TRANSITION_VETOED: fold_seed.vetoed,
        T.ISOLATION_VIOLATION: fold_seed.isolation_violation,
        T.COUNTERFACTUAL_COMPUTED: fold_seed.counterfactual,
        T.COUNTERFACTUAL_UNAVAILABLE: fold_seed.counterfactual_unavailable,
        T.PROMISES_MEASURED: fold_seed.promises_measured,
        T.TRAINING_STARTED: fold_run.training_started,
        T.TRAINING_ENDED: fold_run.training_ended,
        T.EPISODE_STARTED: fold_run.episode_started,
        T.EPISODE_ENDED: fold_run.episode_ended,
        T.EPOCH_COMPLETED: fold_run.epoch_completed,
        T.COMMAND_ISSUED: fold_run.command_issued,
        T.COMMAND_EXECUTED: fold_run.command_settled,
        T.COMMAND_FAILED: fold_run.command_settled,
        T.MODEL_EXPORTED: fold_run.model_exported,
        T.ANALYTICS_SNAPSHOT: fold_policy.analytics,
        T.COMPUTE_SPENT: fold_run.compute_spent,
        T.PPO_UPDATE_COMPLETED: fold_policy.update_completed,
        T.REWARD_COMPUTED: fold_policy.reward_computed,
        T.REWARD_HACKING_SUSPECTED: fold_policy.detected,
        T.PLATEAU_DETECTED: fold_policy.detected,
        T.DEGRADATION_DETECTED: fold_policy.detected,
        T.IMPROVEMENT_DETECTED: fold_policy.detected,
        T.RATIO_EXPLOSION_DETECTED: fold_policy.detected,
        T.RATIO_COLLAPSE_DETECTED: fold_policy.detected,
        T.VALUE_COLLAPSE_DETECTED: fold_policy.detected,
        T.NUMERICAL_INSTABILITY_DETECTED: fold_policy.detected,
        T.HEAD_COLLAPSE_DETECTED: fold_policy.detected,
        T.MEMORY_WARNING: fold_policy.detected,
        T.PERFORMANCE_DEGRADATION: fold_policy.detected,
        T.GOVERNOR_SNAPSHOT: fold_run.governor_snapshot,
        T.GOVERNOR_PANIC: fold_run.governor_panic,
        T.GOVERNOR_ROLLBACK: fold_run.governor_rollback,
        T.CHECKPOINT_SAVED: fold_run.checkpoint,
        T.CHECKPOINT_LOADED: fold_run.checkpoint,
        T.WORKER_REPLACED: fold_policy.detected,
        T.RANKS_DIFFER: fold_policy.detected,
        T.TELEMETRY_DROPPED: fold_run.dropped,
        T.TELEMETRY_LEVEL_SET: fold_run.level_set,
    }
)
"""event type -> what it changes."""

ROUTINE: Final = frozenset(
    {
        T.EPOCH_COMPLETED,
        T.COUNTERFACTUAL_COMPUTED,
        T.COUNTERFACTUAL_UNAVAILABLE,
        T.COMPUTE_SPENT,
        T.ANALYTICS_SNAPSHOT,
        T.REWARD_COMPUTED,
        T.GOVERNOR_SNAPSHOT,
        T.COMMAND_ISSUED,
    }
)
"""Counted and shown in their own places, but not in the feed, unless they are warnings."""

FEED = 200
"""Newest events kept in the feed; warnings and worse have a list of the same length to themselves."""

_LOUD = frozenset({"warning", "error", "critical"})


def apply(state: RunState, event: TelemetryEvent) -> RunState:
    """Fold one event into ``state`` and return it."""
    state.events += 1
    time, kind, seq = event.timestamp, event.event_type, event.seq
    if time is not None and (state.last_time is None or time > state.last_time):
        state.last_time = time
        if state.first_time is None:
            state.first_time = time
    if event.producer is not None and seq is not None:
        producer = state.producers.get(event.producer)
        if producer is None:
            state.producers[event.producer] = ProducerFold(last_seq=seq)
        elif seq > producer.last_seq:
            if seq > producer.last_seq + 1:
                producer.missing += seq - producer.last_seq - 1
            producer.last_seq = seq
    environment = None
    if event.env_id is not None:
        environment = state.environments.get(event.env_id)
        if environment is None:
            environment = EnvironmentFold(env=event.env_id, device=state.run.device or "unknown")
            state.environments[event.env_id] = environment
        environment.version += 1
        if time is not None:
            environment.last_time = time
    HANDLERS[kind](state, event, environment)
    loud = severity(event) in _LOUD
    if loud or kind not in ROUTINE:
        state.feed.append(event)
        trim(state.feed, FEED)
        if loud:
            state.alarms.append(event)
            trim(state.alarms, FEED)
    return state


def fold(events: Iterable[TelemetryEvent], state: RunState | None = None) -> RunState:
    """Fold all ``events`` onto ``state`` (a fresh one when ``None``)."""
    state = RunState() if state is None else state
    for event in events:
        apply(state, event)
    return state
