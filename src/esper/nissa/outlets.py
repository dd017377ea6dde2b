"""How the hub reaches one sink: at once, or through a queue and a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, Protocol

from esper.leyline import Delivery, Sink, TelemetryEvent, TelemetryEventType

_POLL_SECONDS: Final = 0.001
"""How often a producer that must wait looks again."""

OnDrop = Callable[[str, TelemetryEvent, str], None]


class SinkStalled(Exception):
    """A background sink did not take a must-keep event in time."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Of a background sink: how many events may wait, and how long a must-keep one waits for room."""

    events: int
    patience_seconds: float


class Outlet(Protocol):
    """One sink as the hub sees it. What the sink raises comes out of these calls."""

    name: str
    required: bool

    @property
    def deliver(self) -> Sink:
        """What hands over or queues one event."""

    def flush(self, barrier: bool) -> None:
        """Return when everything delivered so far has been handled; with ``barrier`` when it is durable."""

    def close(self) -> None:
        """Handle what is left and let go."""

    def abandon(self) -> list[TelemetryEvent]:
        """After a failure: close the sink if it can still be closed; what it was handed and never handled."""


class Direct:
    """Calls the sink in the emitting thread."""

    def __init__(self, name: str, sink: Sink, required: bool) -> None:
        self.name = name
        self.required = required
        self.deliver = sink
        self._sink = sink

    def flush(self, barrier: bool) -> None:
        _call(self._sink, "sync" if barrier and hasattr(self._sink, "sync") else "flush")

    def close(self) -> None:
        _call(self._sink, "close")

    def abandon(self) -> list[TelemetryEvent]:
        with suppress(Exception):
            self.close()
        return []


class Background:
    """Calls the sink in a thread of its own, from a bounded queue.

    While the sink is behind, a gauge replaces the queued one of the same key (type, kind, environment, slot). In a full
    queue a must-keep event waits for room as long as ``limits`` allow; any other takes the place of the oldest gauge,
    or is itself dropped where there is none.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        required: bool,
        limits: QueueLimits,
        delivery: Mapping[TelemetryEventType, Delivery],
        on_drop: OnDrop,
    ) -> None:
        self.name = name
        self.required = required
        self._sink = sink
        self._limits = limits
        self._delivery = delivery
        self._on_drop = on_drop
        self._queue: dict[tuple[Any, ...], TelemetryEvent] = {}
        self._number = 0
        self._handling: TelemetryEvent | None = None
        self._stopping = False
        self._error: Exception | None = None
        # C primitives only: an exception raised by a signal handler leaves no Python-level lock held
        self._lock = threading.Lock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"esper-sink-{name}", daemon=True)
        self._thread.start()

    def deliver(self, event: TelemetryEvent) -> None:
        """Queue the event. Raises :class:`SinkStalled`, or what the sink raised on an earlier one."""
        how = self._delivery[event.event_type]
        if how is Delivery.MUST_KEEP and not self._wait(lambda: len(self._queue) < self._limits.events):
            raise SinkStalled(
                f"took nothing for {self._limits.patience_seconds:g} s with {len(self._queue)} events queued; "
                f"{event.event_type.name} must not be dropped"
            )
        if self._error is not None:
            raise self._error
        self._number += 1
        dropped: tuple[TelemetryEvent, str] | None = None
        with self._lock:
            key: tuple[Any, ...] = (self._number,)
            if how is Delivery.LATEST_WINS:
                key = (event.event_type, event.data.get("kind"), event.env_id, event.slot_id)
            if key in self._queue:
                dropped = self._queue.pop(key), "replaced_by_newer"
            elif len(self._queue) >= self._limits.events:
                oldest = next((queued for queued in self._queue if len(queued) > 1), None)
                dropped = (event if oldest is None else self._queue.pop(oldest)), "queue_full"
            if dropped is None or dropped[0] is not event:
                self._queue[key] = event
        self._wake.put(None)
        if dropped is not None:
            self._on_drop(self.name, *dropped)

    def flush(self, barrier: bool) -> None:
        if not self._wait(self._idle):
            raise SinkStalled(f"{len(self._queue)} events still queued after {self._limits.patience_seconds:g} s")
        if self._error is not None:
            raise self._error
        _call(self._sink, "sync" if barrier and hasattr(self._sink, "sync") else "flush")

    def close(self) -> None:
        try:
            self.flush(False)
        finally:
            self._stop()
        self._thread.join(self._limits.patience_seconds)
        _call(self._sink, "close")

    def abandon(self) -> list[TelemetryEvent]:
        with suppress(Exception):
            _call(self._sink, "close")
        self._stop()
        with self._lock:
            left = [*([] if self._handling is None else [self._handling]), *self._queue.values()]
            self._queue.clear()
        return left

    def _stop(self) -> None:
        self._stopping = True
        self._wake.put(None)

    def _wait(self, until: Callable[[], bool]) -> bool:
        """Whether ``until`` came true in time; true as well once the sink has failed."""
        deadline = time.monotonic() + self._limits.patience_seconds
        while not until() and self._error is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _idle(self) -> bool:
        with self._lock:
            return not self._queue and self._handling is None

    def _work(self) -> None:
        while not self._stopping:
            self._wake.get()
            while (event := self._next()) is not None:
                try:
                    self._sink(event)
                except Exception as error:
                    self._error = error
                    return
                self._handling = None

    def _next(self) -> TelemetryEvent | None:
        with self._lock:
            if not self._queue:
                return None
            self._handling = self._queue.pop(next(iter(self._queue)))
            return self._handling


def _call(sink: Sink, method: str) -> None:
    bound = getattr(sink, method, None)
    if callable(bound):
        bound()
