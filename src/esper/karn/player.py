"""A run at another time: seek, step, play."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from esper.karn.advice import about
from esper.karn.replay import ReadProgress, Timeline
from esper.karn.schema import Damage, Snapshot
from esper.karn.snapshot import Builder
from esper.karn.state import RunState


class Player:
    """Shows ``directory`` at a moment of its own. ``clock`` turns playing time into the run's time."""

    def __init__(
        self,
        directory: str | Path,
        clock: Callable[[], float],
        cache: str | Path | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        self.speed = 1.0
        """Seconds of the run per second of the replay."""
        self.playing = False
        self._open: Callable[[], Timeline] = lambda: Timeline(directory, cache=cache, progress=progress)
        self._clock = clock
        self._timeline = self._open()
        self._known = about(directory)
        self.builder = Builder(self._known)
        self._ticked = clock()
        self.state: RunState = self._timeline.at(0)
        self.now = self._timeline.start_time or 0.0

    @property
    def damage(self) -> list[Damage]:
        """What the reader met."""
        return self._timeline.damage

    @property
    def timeline(self) -> Timeline:
        """The journal's index."""
        return self._timeline

    def reopen(self) -> None:
        """Take in what was written since; the moment stays."""
        here = self.state.events
        self._timeline = self._open()
        self.state = self._timeline.at(here)

    def seek(self, events: int) -> None:
        """Show the state after the first ``events`` events."""
        self._show(self._timeline.at(events))

    def seek_time(self, moment: float) -> None:
        """Show the state when the clock stood at ``moment``."""
        self._show(self._timeline.at_time(moment))
        self.now = moment

    def step(self, events: int) -> None:
        """Move by some events, forward or back, and pause."""
        self.playing = False
        self.seek(max(0, self.state.events + events))

    def play(self, speed: float | None = None) -> None:
        """Let time run, from the start when the end was reached."""
        if speed is not None:
            self.speed = speed
        if self.state.events >= self._timeline.events:
            self.seek_time(self._timeline.start_time or 0.0)
        self.playing = True
        self._ticked = self._clock()

    def tick(self, worst: int | None = None) -> Snapshot:
        """Move on if playing, and build the snapshot, with rows of the ``worst`` only."""
        real = self._clock()
        passed, self._ticked = max(0.0, real - self._ticked), real
        if self.playing:
            end = self._timeline.end_time or self.now
            moment = self.now + passed * self.speed
            self.state = self._timeline.at_time(min(moment, end))
            self.now, self.playing = min(moment, end), moment < end
        return self.builder.build(self.state, self.now, self.damage, worst=worst)

    def _show(self, state: RunState) -> None:
        self.state, self.now = state, state.last_time or 0.0
        self.builder = Builder(self._known)
