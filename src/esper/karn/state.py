"""What Overwatch knows of a run: plain data, folded from events alone (:mod:`esper.karn.aggregator`).

What a face shows as it was told is declared once, in :mod:`esper.karn.schema`; a fold holds such parts or is made of
them, and adds what it needs to go on.

Nothing here reads a clock. A key or field that was never measured is missing or ``None``; every measured one carries
the epoch and the time of its measurement.
"""

from __future__ import annotations

import functools
from typing import Any, Final, TypeVar, get_type_hints

import msgspec

from esper.karn.parts import Level
from esper.karn.schema import (
    Action,
    Census,
    Drop,
    EnvironmentFacts,
    GateFacts,
    HostVitals,
    Leader,
    RunFacts,
    SeedFacts,
    Stretch,
)
from esper.karn.series import Series
from esper.leyline import TelemetryEvent
from esper.leyline.payloads.run import EpochCompleted

Value = float | int | bool | str


class Measured(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A value, the epoch it was measured in and the wall clock then; ``None`` = of unknown age."""

    value: Value
    epoch: int | None = None
    time: float | None = None


Facts = dict[str, Measured]
"""Name of a measured field (as in the payload) -> its newest value. What was never measured has no entry."""


def payload_keys(payload: type, *types: type, into: type[msgspec.Struct] | None = None) -> tuple[str, ...]:
    """Keys of a payload that hold one of ``types`` and, where ``into`` is given, are fields of it."""
    known = get_type_hints(payload)
    return tuple(name for name, it in known.items() if it in types and (into is None or name in into.__struct_fields__))


EPOCH_FACTS: Final = payload_keys(EpochCompleted, int, float)
"""Fields that the event at the end of an epoch measures."""


class GateFold(GateFacts, kw_only=True):
    """The last evaluation of one gate, its checks as the payload has them: only those that are looked at get words."""

    checks: list[dict[str, Any]]
    deciding: list[str]
    """Ids of the checks that decided it: the failed ones, or all where none failed."""
    epoch: int | None = None
    time: float | None = None


class SeedFold(SeedFacts, kw_only=True):
    """One seed of one slot; ``stage`` is the one in which it ended."""

    facts: Facts = {}
    gates: dict[str, GateFold] = {}
    alpha: Series = msgspec.field(default_factory=Series)
    contribution: Series = msgspec.field(default_factory=Series)
    costs: Series = msgspec.field(default_factory=Series)
    """Removal costs alone."""
    unavailable: str | None = None
    veto: str | None = None
    end_reason: str | None = None
    end_by: str | None = None
    end_epoch: int | None = None
    end_cost: Measured | None = None
    """Removal cost as the event of its end tells it; a counterfactual may be newer."""
    end_cost_se: float | None = None
    reopened_epoch: int | None = None
    """Epoch in which the slot opened again above it."""


class SlotFold(msgspec.Struct, omit_defaults=True):
    """One slot: its stage, the seed in it, those that it has kept beneath, and those that were."""

    slot: str
    stage: str | None = None
    seed: SeedFold | None = None
    kept: list[SeedFold] = []
    past: list[SeedFold] = []
    seeds_seen: int = 0
    swimlane: list[Stretch] = []
    gate: GateFold | None = None
    """Last gate evaluated in this slot, also of a seed that was never built (G0)."""


class DeliveredSeed(msgspec.Struct, omit_defaults=True):
    """A seed of the network that an episode delivers."""

    seed_id: str
    stage: str | None = None
    reason: str | None = None
    """Why it is there, where no gate had passed it."""
    slot: str | None = None
    blueprint: str | None = None
    parameters: int | None = None


class EpisodeRecord(msgspec.Struct, omit_defaults=True):
    """What an episode of one environment came to."""

    arm: str
    policy: str
    seed: int
    episode: int | None
    env_id: int | None
    epochs: int
    status: str
    seconds: float
    host_parameters: int
    total_parameters: int
    seeds_kept: int
    validation_metric: float | None = None
    test_metric: float | None = None
    test_loss: float | None = None
    test_examples: int | None = None
    train_macs: int | None = None
    total_macs: int | None = None
    inference_macs: int | None = None
    delivered: str | None = None
    """``best`` or ``last``: which state of the network."""
    delivered_epoch: int | None = None
    seeds: list[DeliveredSeed] = []


class Refusal(msgspec.Struct, omit_defaults=True):
    """How often one check kept seeds of one arm from moving on, and the newest time."""

    count: int
    gate: str
    check: dict[str, Any]
    epoch: int | None = None
    slot: str | None = None


class AnomalyFold(msgspec.Struct, omit_defaults=True):
    """What the score of an environment is made of, and what steadies its rank."""

    calmer: int = 0
    """Own epochs in a row in which the score was clearly below the rank."""
    evidence: dict[str, float] = {}
    """Name of each rule past its threshold -> what was measured."""


class EnvironmentFold(EnvironmentFacts, kw_only=True):
    """One environment: a growing host in its current episode."""

    device: str = "unknown"
    level: Level = "ok"
    score: float = 0.0
    rank: float = 0.0
    """The steadied score that orders the board."""
    status: str = "running"
    """``running``, or the status of the episode's end event."""
    host_parameters: int | None = None
    result: EpisodeRecord | None = None
    """What the episode came to, once it has ended."""
    report: TelemetryEvent | None = None
    """The event at the end of the newest epoch."""
    loose_facts: Facts = {}
    """What other events measured, and older reports where the newest one does not say."""
    non_finite: list[str] = []
    """Names of the fields that were NaN or infinite in the last epoch."""
    metric: Series = msgspec.field(default_factory=Series)
    loss: Series = msgspec.field(default_factory=Series)
    first_metric: float | None = None
    best: Measured | None = None
    wobble: float | None = None
    """Moving average of the absolute change of the metric from epoch to epoch."""
    first_objective: float | None = None
    best_objective: float | None = None
    objective_wobble: float | None = None
    """As ``wobble``, of the objective that rewards pay for."""
    slots: dict[str, SlotFold] = {}
    actions: list[Action] = []
    actions_seen: int = 0
    prunes: list[int] = []
    """Epochs of the newest prunes."""
    gate_failures: list[int] = []
    panics: list[int] = []
    rollbacks: int = 0
    compute: Facts = {}
    diagnostics: dict[str, Any] = {}
    diagnostics_epoch: int | None = None
    anomaly: AnomalyFold = msgspec.field(default_factory=AnomalyFold)
    last_time: float | None = None
    epoch_seconds: float | None = None
    """Moving average of the wall time from one epoch's end to the next."""
    last_epoch_time: float | None = None
    version: int = 0
    """Events folded into this environment; a cache key for faces."""

    @property
    def facts(self) -> Facts:
        """Everything that was measured; to look at, not to write to."""
        return self.loose_facts if self.report is None else self.loose_facts | facts_of(self.report)


def facts_of(report: TelemetryEvent) -> Facts:
    """What the event at the end of an epoch measured."""
    known = ((name, report.data.get(name)) for name in EPOCH_FACTS)
    return {name: Measured(value, report.epoch, report.timestamp) for name, value in known if value is not None}


class RunFold(RunFacts, kw_only=True):
    """The run itself."""

    end_reason: str | None = None
    end_seconds: float | None = None
    host: dict[str, Any] | None = None
    """What the host is made of, as the payload has it; ``None`` in journals that do not say."""
    exported_parameters: int | None = None
    """Of the model that was written."""
    folded: int = 0
    """Seeds that are in a weight of that model, where they have no parameters of their own."""


class ProducerFold(msgspec.Struct, omit_defaults=True):
    """Position of one producer; a jump of ``seq`` is a loss."""

    last_seq: int = -1
    missing: int = 0


class RunState(msgspec.Struct, omit_defaults=True):
    """Everything, from the first event to the last one folded."""

    events: int = 0
    first_time: float | None = None
    last_time: float | None = None
    run: RunFold = msgspec.field(default_factory=RunFold)
    environments: dict[int, EnvironmentFold] = {}
    producers: dict[str, ProducerFold] = {}
    pulse: Facts = {}
    learner: Facts = {}
    """What the policy chose in its last round, and what masks left it to choose from."""
    host: HostVitals | None = None
    disk: list[tuple[float, int]] = []
    """Times, and bytes left on the disk then, of the last minutes."""
    op_counts: dict[str, int] = {}
    tallies: dict[str, tuple[int, int]] = {}
    """Pulse figure that is a share -> (yes, all)."""
    census: dict[str, Census] = {}
    epochs_done: int = 0
    leaderboard: list[Leader] = []
    results: list[EpisodeRecord] = []
    """What the newest episodes came to."""
    germinated: dict[str, int] = {}
    """Arm -> seeds that germinated."""
    refusals: dict[str, dict[str, Refusal]] = {}
    """Arm -> gate and check -> how often it failed."""
    feed: list[TelemetryEvent] = []
    alarms: list[TelemetryEvent] = []
    """Warnings and worse, kept longer than the feed."""
    governor: list[TelemetryEvent] = []
    drops: list[Drop] = []
    unplaced: int = 0
    """Events about an environment or a slot that did not say which."""
    typical_train_ms: float | None = None
    """About the lower fifth of the training times per epoch of all environments."""


X = TypeVar("X", bound=msgspec.Struct)


def view(kind: type[X], fold: msgspec.Struct, **more: Any) -> X:
    """A ``kind`` of ``more`` and of what ``fold`` holds by the same names; lists and mappings are copied."""
    for name in _shared(kind, type(fold)):
        if name not in more:
            value = getattr(fold, name)
            more[name] = value.copy() if isinstance(value, list | dict) else value
    return kind(**more)


@functools.cache
def _shared(kind: type[msgspec.Struct], fold: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(name for name in kind.__struct_fields__ if name in fold.__struct_fields__)


def encode(state: RunState) -> bytes:
    """The state as bytes (msgpack, which keeps NaN and infinities); the same state gives the same bytes."""
    return _ENCODER.encode(state)


def decode(data: bytes) -> RunState:
    """Undo of :func:`encode`. Raises ``msgspec.ValidationError`` on another shape."""
    return _DECODER.decode(data)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(RunState)
