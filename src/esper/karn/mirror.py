"""A run's curves in an experiment tracker: read from the journal, outside the training process, once or as it grows.

Every tracker gets the same points. A group is an environment (``env3``) or the policy; the step of an environment is
its epochs so far, over all its episodes. What was not measured gives no point; NaN and infinities are passed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from esper.karn.fold_run import BY_SLOT
from esper.karn.fold_seed import CONTRIBUTION, ROW_CONTRIBUTION
from esper.karn.state import EPOCH_FACTS
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import JournalTail

EVERY: Final = 1.0
"""Seconds between looks at a journal that may still grow."""
AT_ONCE: Final = 4096
"""Events read before points are written."""


class Point(NamedTuple):
    """One value of one curve; ``time`` is the wall clock of its event, seconds since 1970."""

    group: str
    name: str
    step: int
    value: float
    time: float | None


class Tracker(Protocol):
    """Where points go (:mod:`esper.karn.trackers`)."""

    def write(self, points: list[Point]) -> None:
        """Take points, each curve's in the order of its steps."""

    def close(self, status: str | None) -> None:
        """The end, with the run's own ``status``; ``None`` when it did not say that it ended."""


class Points:
    """Turns a run's events, in order, into points."""

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        """env -> epochs in its earlier episodes"""
        self._newest: dict[int, int] = {}
        """env -> newest step"""

    def of(self, event: TelemetryEvent) -> list[Point]:
        """The points that ``event`` holds; most events hold none."""
        env = event.env_id
        if event.event_type is T.PPO_UPDATE_COMPLETED:
            return [
                Point("policy", name, event.data["round"], float(value), event.timestamp)
                for name, value in _numbers(event.data)
                if name != "round"
            ]
        values = _VALUES.get(event.event_type)
        if env is None:
            return []
        if event.event_type is T.EPISODE_STARTED:
            self._before[env] = self._newest.get(env, 0)
        if event.epoch is not None:
            self._newest[env] = self._before.get(env, 0) + event.epoch
        if values is None:
            return []
        step = self._newest.get(env, 0)
        return [Point(f"env{env}", name, step, float(value), event.timestamp) for name, value in values(event)]


def mirror(
    run: Path,
    tracker: Tracker,
    *,
    follow: bool = False,
    wait: Callable[[float], None] = time.sleep,
    note: Callable[[str], None] = lambda text: None,
) -> int:
    """Give every point of the journal in ``run`` to ``tracker``, and close it; returns how many there were.

    With ``follow`` it goes on until an event says that the run ended. ``note`` is told what the reader of the curves
    should know. Raises ``DataError`` for a damaged journal, after the points before the damage.
    """
    tail, points = JournalTail(run), Points()
    count, status = 0, None
    try:
        while True:
            events = tail.poll(AT_ONCE)
            for rewind in tail.rewinds:
                note(f"resumed: points after event {rewind.after_seq} are written again; their steps occur twice")
            batch: list[Point] = []
            for event in events:
                batch += points.of(event)
                if event.event_type is T.TRAINING_STARTED:
                    status = None
                elif event.event_type is T.TRAINING_ENDED:
                    status = event.data.get("status")
            tracker.write(batch)
            count += len(batch)
            if not events:
                if not follow or status is not None:
                    return count
                wait(EVERY)
    finally:
        tracker.close(status)


def _numbers(data: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in data.items() if type(value) in (int, float))


def _epoch(event: TelemetryEvent) -> Iterator[tuple[str, float]]:
    data = event.data
    yield from ((name, data[name]) for name in EPOCH_FACTS if name in data)
    for key, fact in BY_SLOT:
        yield from ((f"{fact}/{slot}", value) for slot, value in data.get(key, {}).items())


def _contribution(event: TelemetryEvent) -> Iterator[tuple[str, float]]:
    data = event.data
    yield from ((name, data[name]) for name in ROW_CONTRIBUTION if name in data)
    if event.slot_id is not None:
        yield from ((f"{name}/{event.slot_id}", data[name]) for name in CONTRIBUTION if name in data)


def _reward(event: TelemetryEvent) -> Iterator[tuple[str, float]]:
    for name in ("total", "objective"):
        if name in event.data:
            yield f"reward/{name}", event.data[name]
    yield from ((f"reward/{name}", value) for name, value in event.data.get("components", {}).items())


def _compute(event: TelemetryEvent) -> Iterator[tuple[str, float]]:
    yield from ((f"compute/{name}", value) for name, value in _numbers(event.data))


def _result(event: TelemetryEvent) -> Iterator[tuple[str, float]]:
    yield from ((name, event.data[name]) for name in ("test_metric", "test_loss") if name in event.data)


_VALUES: Final[Mapping[T, Callable[[TelemetryEvent], Iterator[tuple[str, float]]]]] = {
    T.EPOCH_COMPLETED: _epoch,
    T.COUNTERFACTUAL_COMPUTED: _contribution,
    T.REWARD_COMPUTED: _reward,
    T.COMPUTE_SPENT: _compute,
    T.EPISODE_ENDED: _result,
}
"""Event type -> curves of an environment and their values."""
