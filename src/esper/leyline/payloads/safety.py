"""Payloads of the governor, of checkpoints and of telemetry about telemetry."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class GovernorSnapshot(TypedDict):
    of_epoch: int
    bytes: int
    loss: NotRequired[float]
    metric: NotRequired[float]


class GovernorPanic(TypedDict):
    reason: str
    measured: NotRequired[float]
    threshold: NotRequired[float]
    consecutive_panics: int
    rollbacks: int
    device: NotRequired[str]


"""``reason`` is ``non_finite_loss``, ``non_finite_weights``, ``divergence`` or ``collapse_to_chance``. Counters are as
they were at the panic."""


class GovernorRollback(TypedDict):
    reason: str
    to_epoch: int
    lost_epochs: int
    consecutive_panics: int
    rollbacks: int
    cause: str
    suspect: NotRequired[str]
    vetoed_epochs: NotRequired[int]
    device: NotRequired[str]


"""``cause`` is ``external`` (the same step would succeed) or ``internal`` (it recurred; ``suspect`` is vetoed for
``vetoed_epochs``)."""


class CheckpointSaved(TypedDict):
    path: str
    step: int
    bytes: int
    seconds: float
    reason: str
    after_seq: NotRequired[int]


class CheckpointLoaded(TypedDict):
    path: str
    step: int
    exact: bool
    after_seq: NotRequired[int]
    differences: NotRequired[list[str]]
    overrides: NotRequired[list[str]]
    passed_over: NotRequired[list[str]]


"""``overrides`` are settings that the resume changed (``name: before -> after``), ``passed_over`` newer checkpoints
that were not whole."""


class WorkerReplaced(TypedDict):
    worker: int
    where: str
    reason: str
    environments: list[int]
    epochs_repeated: int


"""A process or actor that drove ``environments`` was lost; another repeats the epochs that their episodes had done."""


class TelemetryDropped(TypedDict):
    sink: str
    event_type: str
    count: int
    reason: str
    first_seq: NotRequired[int]
    last_seq: NotRequired[int]


class TelemetryLevelSet(TypedDict):
    level: str
    lifecycle_only: bool
    suppressed: list[str]


SPECS = (
    PayloadSpec(T.GOVERNOR_SNAPSHOT, GovernorSnapshot, Delivery.MUST_KEEP, "tolaria.governor", "governor history"),
    PayloadSpec(
        T.GOVERNOR_PANIC, GovernorPanic, Delivery.MUST_KEEP, "tolaria.governor", "anomaly score, governor history"
    ),
    PayloadSpec(
        T.GOVERNOR_ROLLBACK, GovernorRollback, Delivery.MUST_KEEP, "tolaria.governor", "anomaly score, governor history"
    ),
    PayloadSpec(
        T.CHECKPOINT_SAVED, CheckpointSaved, Delivery.MUST_KEEP, "tolaria.checkpoint", "run header, event feed"
    ),
    PayloadSpec(
        T.CHECKPOINT_LOADED, CheckpointLoaded, Delivery.MUST_KEEP, "tolaria.checkpoint", "run header, event feed"
    ),
    PayloadSpec(T.WORKER_REPLACED, WorkerReplaced, Delivery.MUST_KEEP, "simic.workers", "event feed"),
    PayloadSpec(T.TELEMETRY_DROPPED, TelemetryDropped, Delivery.MUST_KEEP, "nissa.hub", "drops banner"),
    PayloadSpec(T.TELEMETRY_LEVEL_SET, TelemetryLevelSet, Delivery.MUST_KEEP, "nissa.hub", "run header"),
)
