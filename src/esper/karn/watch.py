"""One run being watched, live or at another time: what every interactive face drives."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from esper.karn import state as states
from esper.karn.detail import build_detail
from esper.karn.replay import Progress, Timeline
from esper.karn.runs import describe_run
from esper.karn.schema import Damage, EnvironmentDetail, HostVitals, Snapshot
from esper.karn.snapshot import Builder
from esper.karn.source import Follower
from esper.karn.state import RunState
from esper.karn.vitals import Sampler

VITALS_EVERY = 1.0
"""Seconds between samples of the body's vitals."""


class Watch:
    """Follows ``directory``; :meth:`tick` polls and gives the next snapshot.

    ``clock`` is the wall clock, injected in tests. Replay is entered by :meth:`seek`, :meth:`seek_time` or
    :meth:`play`, and left by :meth:`live`. ``open_at_end`` first indexes a long journal (with ``progress``), so that
    a later opening and every seek are quick.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        cache: str | Path | None = None,
        progress: Progress | None = None,
        open_at_end: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.speed = 1.0
        """Seconds of the run per second of the replay."""
        self.playing = False
        self._clock, self._cache, self._progress = clock, cache, progress
        self._timeline: Timeline | None = None
        self._builder = Builder()
        self._moment: float | None = None
        self._state: RunState | None = None
        self._ticked = clock()
        self._sampler: Sampler | None = None
        self._vitals: HostVitals | None = None
        self._vitals_at = 0.0
        if open_at_end:
            self._timeline = Timeline(self.directory, cache=cache, progress=progress)
            data, position = self._timeline.end
            self._follower = Follower(self.directory, states.decode(data), position)
        else:
            self._follower = Follower(self.directory)

    @property
    def replaying(self) -> bool:
        """Whether another time than now is shown."""
        return self._state is not None

    @property
    def state(self) -> RunState:
        """The folded state that is shown."""
        return self._follower.state if self._state is None else self._state

    @property
    def damage(self) -> list[Damage]:
        """What is wrong with the journal."""
        return self._follower.damage if self._timeline is None or self._state is None else self._timeline.damage

    @property
    def now(self) -> float:
        """The clock of what is shown: the wall clock, or the moment of the replay."""
        return self._clock() if self._moment is None else self._moment

    def tick(self) -> Snapshot:
        """Take in what is new, move a playing replay on, and build the snapshot."""
        real = self._clock()
        passed, self._ticked = max(0.0, real - self._ticked), real
        self._follower.poll()
        if self.playing and self._moment is not None:
            self._go(self._moment + passed * self.speed)
        host = self._sample(real) if self._state is None else None
        return self._builder.build(self.state, self.now, self.damage, host)

    def detail(self, env_id: int) -> EnvironmentDetail:
        """The drawer of one environment at the moment shown. Raises ``UsageError`` when there is no such one."""
        return build_detail(self.state, env_id, self.now)

    @property
    def timeline(self) -> Timeline:
        """Index of the journal as it is now; read on when the run has gone on since."""
        seen = self._follower.state.events
        if self._timeline is None or self._timeline.events < seen:
            self._timeline = Timeline(self.directory, cache=self._cache, progress=self._progress)
        return self._timeline

    def seek(self, events: int) -> None:
        """Show the state after the first ``events`` events."""
        self._show(self.timeline.at(events))

    def seek_time(self, moment: float) -> None:
        """Show the state when the clock stood at ``moment``."""
        timeline = self.timeline
        self._show(timeline.at_time(moment))
        self._moment = moment

    def step(self, events: int) -> None:
        """Move by some events, forward or back."""
        self.playing = False
        self.seek(max(0, self.state.events + events))

    def play(self, speed: float | None = None) -> None:
        """Let the replay run, from the start when nothing else is shown."""
        if speed is not None:
            self.speed = speed
        if self._state is None or self.state.events >= self.timeline.events:
            self.seek_time(self.timeline.start_time or 0.0)
        self.playing = True

    def live(self) -> None:
        """Back to now."""
        self.playing, self._state, self._moment = False, None, None
        self._builder = Builder()

    def _show(self, state: RunState) -> None:
        self._state = state
        self._moment = state.last_time or 0.0
        self._builder = Builder()

    def _go(self, moment: float) -> None:
        timeline = self._timeline
        if timeline is None:
            return
        end = timeline.end_time or moment
        self._state = timeline.at_time(min(moment, end))
        self._moment = min(moment, end)
        self.playing = moment < end

    def _sample(self, now: float) -> HostVitals | None:
        if self._follower.state.run.end_status is not None:
            return None
        if self._sampler is None:
            self._sampler = Sampler(describe_run(self.directory).pid)
        if now - self._vitals_at >= VITALS_EVERY:
            self._vitals, self._vitals_at = self._sampler.sample(now), now
        return self._vitals
