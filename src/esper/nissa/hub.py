"""Fan-out of events to sinks, without silent loss."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from esper.leyline import REGISTRY, Delivery, EsperError, Sink, TelemetryEvent, TelemetryEventType, UsageError
from esper.nissa.levels import Level, suppressed
from esper.nissa.outlets import Background, Direct, Outlet, QueueLimits, SinkStalled

_LOG = logging.getLogger("esper.nissa")
_FAILED: Final = "sink_failed"
HUB: Final = "hub"
"""Producer of reports of drops: they come by the clock, and must not change the numbers of what they report on."""
DELIVERY: Final = MappingProxyType({kind: spec.delivery for kind, spec in REGISTRY.items()})


class TelemetryError(EsperError):
    """A sink that the run must not do without has failed."""


@dataclass(slots=True)
class DropCount:
    """Events of one type that did not reach ``sink`` (``*`` = none of the sinks)."""

    sink: str
    event_type: str
    reason: str
    count: int = 0
    unreported: int = 0
    first_seq: int | None = None
    """Of the unreported ones; ``None`` where they were left out before they got a number."""
    last_seq: int | None = None

    def add(self, seq: int | None) -> None:
        """Count one more."""
        if self.unreported == 0:
            self.first_seq = seq
        self.count += 1
        self.unreported += 1
        self.last_seq = seq

    def take(self) -> dict[str, Any]:
        """The payload that reports what was not reported yet."""
        data = {
            "sink": self.sink,
            "event_type": self.event_type,
            "count": self.unreported,
            "reason": self.reason,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
        }
        self.unreported = 0
        return {key: value for key, value in data.items() if value is not None}


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Limits of the hub."""

    patience_seconds: float = 10.0
    """How long a must-keep event waits for a background sink with a full queue."""
    queue_events: int = 1024
    """Length of a background sink's queue."""
    sample_every: int = 10
    """One of so many sampled events of each type is told, the first among them."""
    report_seconds: float = 5.0
    """Drops are reported at least this often while events flow, and at every barrier."""


class NissaHub:
    """Stamps events and hands them to every sink, in order.

    A sink is a callable that takes an event; it may have ``flush()``, ``sync()`` and ``close()``. One that raises is
    detached and named in the log and in a ``TELEMETRY_DROPPED`` event; if it is *required* (the journal is), the run
    fails with a :class:`TelemetryError`. Events that a level suppresses or that sampling leaves out take no ``seq``, so
    that a gap in ``seq`` is always a loss. ``emit`` may be called from any thread.
    """

    def __init__(
        self,
        producer: str = "train",
        level: Level | str = Level.NORMAL,
        lifecycle_only: bool = False,
        *,
        last_seq: int = 0,
        config: HubConfig | None = None,
        delivery: Mapping[TelemetryEventType, Delivery] = DELIVERY,
    ) -> None:
        """``last_seq``: where a resumed run's checkpoint was; the next event gets the one after it."""
        self.producer = producer
        self.last_seq = last_seq
        self._others: dict[str, int] = {}
        """Last seq of events that name another producer."""
        self.level = Level.parse(level)
        self.lifecycle_only = lifecycle_only
        self._config = config or HubConfig()
        self._delivery = delivery
        self._outlets: list[Outlet] = []
        self._detached: list[str] = []
        self._drops: dict[tuple[str, str, str], DropCount] = {}
        self._unreported = False
        self._report_at = 0.0
        self._sampled: dict[TelemetryEventType, int] = {}
        self._lock = threading.RLock()
        self._ready = False
        self._closed = False
        self._set_rules()

    def add_sink(
        self, sink: Sink, *, name: str | None = None, required: bool | None = None, background: bool = False
    ) -> None:
        """Hand every event from now on to ``sink``.

        ``required``: the run fails when the sink does (default: the sink's own attribute ``required``, else no).
        ``background``: a slow sink gets a queue and a thread of its own. When it falls behind, must-keep events wait
        for it, gauges are replaced by newer ones of the same key, and what was replaced is counted.
        """
        with self._lock:
            label = name or _name_of(sink)
            if any(outlet.name == label for outlet in self._outlets):
                raise UsageError(f"there is a telemetry sink {label!r} already")
            must = bool(getattr(sink, "required", False)) if required is None else required
            if background:
                limits = QueueLimits(self._config.queue_events, self._config.patience_seconds)
                self._outlets.append(Background(label, sink, must, limits, self._delivery, self._count_drop))
            else:
                self._outlets.append(Direct(label, sink, must))

    @property
    def drops(self) -> tuple[DropCount, ...]:
        """Everything that was not delivered so far, by sink, type and reason."""
        with self._lock:
            return tuple(self._drops.values())

    def set_level(self, level: Level | str, lifecycle_only: bool = False) -> None:
        """Change what is told from now on, and say so by an event."""
        with self._lock:
            self.level, self.lifecycle_only = Level.parse(level), lifecycle_only
            self._set_rules()
            self._announce()

    def state(self) -> dict[str, Any]:
        """Where numbering and sampling are, and what is told, JSON-able."""
        return {
            "last_seq": self.last_seq,
            "others": dict(self._others),
            "sampled": {kind.name: turn for kind, turn in self._sampled.items()},
            "level": self.level.value,
            "lifecycle_only": self.lifecycle_only,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on, before the first event, from where :meth:`state` was taken. A level that has not changed since was
        said before."""
        with self._lock:
            self.last_seq, self._others = state["last_seq"], dict(state["others"])
            self._sampled = {TelemetryEventType[name]: turn for name, turn in state["sampled"].items()}
            self._ready = (self.level.value, self.lifecycle_only) == (state["level"], state["lifecycle_only"])

    def emit(self, event: TelemetryEvent) -> None:
        """Stamp ``event`` where it has no stamp yet and hand it to every sink. Each producer has its own numbers.

        Raises :class:`TelemetryError` when a required sink fails on it.
        """
        with self._lock:
            if not self._ready:
                self._begin(event)
            if event.event_type in self._not_all_told and not self._admit(event):
                return
            self._send(event)
            if self._unreported and time.monotonic() >= self._report_at:
                self._report_drops()

    def flush(self, barrier: bool = False) -> None:
        """Report drops and flush every sink; with ``barrier`` also wait until sinks that can (the journal) are on disk.

        Raises :class:`TelemetryError` when a required sink fails.
        """
        with self._lock:
            self._report_drops()
            for outlet in list(self._outlets):
                self._guarded(outlet, partial(outlet.flush, barrier))

    def close(self) -> None:
        """Flush, report drops and close every sink. A required sink's failure is raised when all are closed."""
        with self._lock:
            if self._closed:
                return
            lesser = [outlet for outlet in self._outlets if not outlet.required]
            needed = [outlet for outlet in self._outlets if outlet.required]
            failures: list[TelemetryError] = []
            steps: list[Callable[[], None]] = [
                self.flush,
                *(partial(self._guarded, outlet, outlet.close) for outlet in lesser),
                partial(self._report_drops, final=True),
                *(partial(self._guarded, outlet, outlet.close) for outlet in needed),
            ]
            for step in steps:
                try:
                    step()
                except TelemetryError as failure:
                    failures.append(failure)
            self._closed = True
            self._ready = False
            if failures:
                raise failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_rules(self) -> None:
        self._suppressed = suppressed(self.level, self.lifecycle_only, self._delivery)
        sampled = {kind for kind, how in self._delivery.items() if how is Delivery.SAMPLED}
        self._not_all_told = self._suppressed | sampled

    def _begin(self, event: TelemetryEvent) -> None:
        if self._closed:
            raise TelemetryError(f"{event.event_type.name} was emitted after the telemetry hub was closed")
        self._announce()

    def _announce(self) -> None:
        self._ready = True
        self._send(
            TelemetryEvent(
                event_type=TelemetryEventType.TELEMETRY_LEVEL_SET,
                data={
                    "level": self.level.value,
                    "lifecycle_only": self.lifecycle_only,
                    "suppressed": sorted(kind.name for kind in self._suppressed),
                },
            )
        )

    def _send(self, event: TelemetryEvent) -> None:
        if event.seq is None:
            if event.producer is None or event.producer == self.producer:
                self.last_seq += 1
                event.seq = self.last_seq
                event.producer = self.producer
            else:
                event.seq = self._others[event.producer] = self._others.get(event.producer, 0) + 1
        if event.timestamp is None:
            event.timestamp = time.time()
        if event.t_mono is None:
            event.t_mono = time.monotonic()
        failed: list[tuple[Outlet, Exception]] = []
        for outlet in self._outlets:
            try:
                outlet.deliver(event)
            except Exception as error:
                failed.append((outlet, error))
        for name in self._detached:
            self._count_drop(name, event, _FAILED)
        for outlet, problem in failed:
            self._detach(outlet, problem, event)

    def _guarded(self, outlet: Outlet, action: Callable[[], None]) -> None:
        if outlet in self._outlets:
            try:
                action()
            except Exception as error:
                self._detach(outlet, error)

    def _detach(self, outlet: Outlet, error: Exception, event: TelemetryEvent | None = None) -> None:
        """Go on without ``outlet``, saying so to the others, or fail the run if it is required."""
        if outlet not in self._outlets:
            return
        self._outlets.remove(outlet)
        self._detached.append(outlet.name)
        for lost in (*outlet.abandon(), *(() if event is None else (event,))):
            self._count_drop(outlet.name, lost, _FAILED)
        spoken = isinstance(error, SinkStalled | EsperError)
        message = f"telemetry sink {outlet.name!r} failed: {error if spoken else f'{type(error).__name__}: {error}'}"
        if outlet.required:
            raise TelemetryError(message) from error
        _LOG.error("%s; it was detached", message)
        self._report_drops(message)

    def _admit(self, event: TelemetryEvent) -> bool:
        """Whether an event of a type that is suppressed or sampled is told."""
        kind = event.event_type
        if kind in self._suppressed:
            return False
        turn = self._sampled.get(kind, 0)
        self._sampled[kind] = turn + 1
        if turn % self._config.sample_every:
            self._count_drop("*", event, "sampled")
            return False
        return True

    def _count_drop(self, sink: str, event: TelemetryEvent, reason: str) -> None:
        key = (sink, event.event_type.name, reason)
        drop = self._drops.get(key)
        if drop is None:
            drop = self._drops[key] = DropCount(*key)
        drop.add(event.seq)
        if not self._unreported and reason != _FAILED:
            self._unreported = True
            self._report_at = time.monotonic() + self._config.report_seconds

    def _report_drops(self, message: str = "", final: bool = False) -> None:
        """One event per sink, type and reason with what was dropped since the last report.

        What a detached sink misses is told when it is detached (``message``) and once more at the end (``final``).
        """
        self._unreported = False
        for drop in list(self._drops.values()):
            failed = drop.reason == _FAILED
            if drop.unreported == 0 or (failed and not (message or final)):
                continue
            self._send(
                TelemetryEvent(
                    event_type=TelemetryEventType.TELEMETRY_DROPPED,
                    producer=HUB,
                    severity="error" if failed else "warning",
                    message=message if failed else "",
                    data=drop.take(),
                )
            )


def _name_of(sink: Sink) -> str:
    name = getattr(sink, "name", None) or getattr(sink, "__name__", None)
    return name if isinstance(name, str) else type(sink).__name__
