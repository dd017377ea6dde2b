"""Payloads of the governor, of checkpoints and of telemetry about telemetry."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class GovernorSnapshot(TypedDict):
    """The state of epoch ``of_epoch`` was kept as the last known good one. Told of the one before the first epoch; then
    ``EPOCH_COMPLETED`` says which it is (journals of 0.1.0 have one for every state)."""

    of_epoch: int
    bytes: int
    loss: NotRequired[float]
    metric: NotRequired[float]


class GovernorPanic(TypedDict):
    """A host cannot go on as it is. ``reason`` is ``non_finite_loss``, ``non_finite_weights``, ``divergence`` or
    ``collapse_to_chance``. Counters are as they were at the panic."""

    reason: str
    measured: NotRequired[float]
    threshold: NotRequired[float]
    consecutive_panics: int
    rollbacks: int
    device: NotRequired[str]


class GovernorRollback(TypedDict):
    """A host was put back to its last good state. ``cause`` is ``external`` (the same step would succeed) or
    ``internal`` (it recurred; ``suspect`` is vetoed for ``vetoed_epochs``)."""

    reason: str
    to_epoch: int
    lost_epochs: int
    consecutive_panics: int
    rollbacks: int
    cause: str
    suspect: NotRequired[str]
    vetoed_epochs: NotRequired[int]
    device: NotRequired[str]


class CheckpointSaved(TypedDict):
    """A checkpoint was written. ``after_seq`` is the last event that it knows of; ``reason`` says what asked for it."""

    path: str
    step: int
    bytes: int
    seconds: float
    reason: str
    after_seq: NotRequired[int]


class CheckpointLoaded(TypedDict):
    """A checkpoint was read. ``overrides`` are settings that the resume changed (``name: before -> after``),
    ``passed_over`` newer checkpoints that were not whole."""

    path: str
    step: int
    exact: bool
    after_seq: NotRequired[int]
    differences: NotRequired[list[str]]
    overrides: NotRequired[list[str]]
    passed_over: NotRequired[list[str]]


class WorkerReplaced(TypedDict):
    """A process or actor that drove ``environments`` was lost; another repeats the epochs that their episodes had
    done."""

    worker: int
    where: str
    reason: str
    environments: list[int]
    epochs_repeated: int


class RanksDiffer(TypedDict):
    """Processes that train one host together have come to something else than rank 0, in ``what``; the run ends."""

    ranks: list[int]
    what: str


class TelemetryDropped(TypedDict):
    """So many events of one type did not reach ``sink`` (``*`` = none of the sinks) since the last report."""

    sink: str
    event_type: str
    count: int
    reason: str
    first_seq: NotRequired[int]
    last_seq: NotRequired[int]


class TelemetryLevelSet(TypedDict):
    """What is told from now on, and the types of event that are not."""

    level: str
    lifecycle_only: bool
    suppressed: list[str]


SPECS = (
    PayloadSpec(T.GOVERNOR_SNAPSHOT, GovernorSnapshot, Delivery.MUST_KEEP, "governor history"),
    PayloadSpec(T.GOVERNOR_PANIC, GovernorPanic, Delivery.MUST_KEEP, "anomaly score, governor history"),
    PayloadSpec(T.GOVERNOR_ROLLBACK, GovernorRollback, Delivery.MUST_KEEP, "anomaly score, governor history"),
    PayloadSpec(T.CHECKPOINT_SAVED, CheckpointSaved, Delivery.MUST_KEEP, "run header, event feed"),
    PayloadSpec(T.CHECKPOINT_LOADED, CheckpointLoaded, Delivery.MUST_KEEP, "run header, event feed"),
    PayloadSpec(T.WORKER_REPLACED, WorkerReplaced, Delivery.MUST_KEEP, "event feed"),
    PayloadSpec(T.RANKS_DIFFER, RanksDiffer, Delivery.MUST_KEEP, "event feed"),
    PayloadSpec(T.TELEMETRY_DROPPED, TelemetryDropped, Delivery.MUST_KEEP, "drops banner"),
    PayloadSpec(T.TELEMETRY_LEVEL_SET, TelemetryLevelSet, Delivery.MUST_KEEP, "run header"),
)
