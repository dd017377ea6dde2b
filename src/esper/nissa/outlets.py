"""How the hub reaches one sink: at once, or through a queue and a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from esper.leyline import Delivery, Sink, TelemetryEvent, TelemetryEventType

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
    queue a must-keep event waits ``patience`` seconds for room; any other takes the place of the oldest gauge, or is
    itself dropped where there is none.
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
        self._capacity = limits.events
        self._patience = limits.patience_seconds
        self._delivery = delivery
        self._on_drop = on_drop
        self._queue: dict[tuple[Any, ...], TelemetryEvent] = {}
        self._number = 0
        self._handling: TelemetryEvent | None = None
        self._stopping = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"esper-sink-{name}", daemon=True)
        self._thread.start()

    def deliver(self, event: TelemetryEvent) -> None:
        """Queue the event. Raises :class:`SinkStalled`, or what the sink raised on an earlier one."""
        how = self._delivery[event.event_type]
        with self._changed:
            self._raise_if_failed()
            self._number += 1
            key: tuple[Any, ...] = (self._number,)
            if how is Delivery.LATEST_WINS:
                key = (event.event_type, event.data.get("kind"), event.env_id, event.slot_id)
                replaced = self._queue.pop(key, None)
                if replaced is not None:
                    self._on_drop(self.name, replaced, "replaced_by_newer")
            if len(self._queue) >= self._capacity and not self._make_room(event, how):
                return
            self._queue[key] = event
            self._changed.notify_all()

    def flush(self, barrier: bool) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: self._error or not (self._queue or self._handling), self._patience)
            self._raise_if_failed()
            if not done:
                raise SinkStalled(f"{len(self._queue)} events still queued after {self._patience:g} s")
        _call(self._sink, "sync" if barrier and hasattr(self._sink, "sync") else "flush")

    def close(self) -> None:
        try:
            self.flush(False)
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
        self._thread.join(self._patience)
        _call(self._sink, "close")

    def abandon(self) -> list[TelemetryEvent]:
        with suppress(Exception):
            _call(self._sink, "close")
        with self._changed:
            left = [*([] if self._handling is None else [self._handling]), *self._queue.values()]
            self._queue.clear()
            self._stopping = True
            self._changed.notify_all()
        return left

    def _make_room(self, event: TelemetryEvent, how: Delivery) -> bool:
        """Whether ``event`` may be queued; the caller holds the lock and the queue is full."""
        if how is Delivery.MUST_KEEP:
            deadline = time.monotonic() + self._patience
            while len(self._queue) >= self._capacity and self._error is None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise SinkStalled(
                        f"took nothing for {self._patience:g} s with {len(self._queue)} events queued; "
                        f"{event.event_type.name} must not be dropped"
                    )
            self._raise_if_failed()
            return True
        oldest = next((key for key in self._queue if len(key) > 1), None)
        dropped = event if oldest is None else self._queue.pop(oldest)
        self._on_drop(self.name, dropped, "queue_full")
        return oldest is not None

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                self._handling = self._queue.pop(next(iter(self._queue)))
                self._changed.notify_all()
            try:
                self._sink(self._handling)
            except Exception as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._handling = None
                self._changed.notify_all()


def _call(sink: Sink, method: str) -> None:
    bound = getattr(sink, method, None)
    if callable(bound):
        bound()
