"""One run being watched, live or at another time: what an interactive face drives."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from esper.karn import state as states
from esper.karn.advice import about
from esper.karn.detail import build_detail
from esper.karn.liveness import goes_on, grown, heard
from esper.karn.player import Player
from esper.karn.replay import ReadProgress, Timeline
from esper.karn.runs import describe_run
from esper.karn.schema import Damage, EnvironmentDetail, EnvironmentRow, Snapshot
from esper.karn.snapshot import Builder
from esper.karn.source import Follower
from esper.karn.state import RunState
from esper.leyline import DataError
from esper.nissa.rundir import RunDirectory
from esper.nissa.segments import journal_bytes, list_segments

LOOKS_EVERY: Final = 1.0
"""Seconds between looks for the run's process."""
LONG: Final = 8 << 20
"""Bytes of a journal from which on it is opened through its index, so that the next opening is quick."""


class RunWatch:
    """Follows ``directory``; :meth:`tick` polls and gives the next snapshot.

    ``clock`` is the wall clock, injected in tests. ``progress`` is told about the first reading of a long journal.
    :meth:`replay` gives the player of another time, and :meth:`live` comes back.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        cache: str | Path | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.player: Player | None = None
        """What shows another time; ``None`` while now is shown."""
        self._clock, self._cache, self._progress = clock, cache, progress
        self._builder = Builder(about(self.directory))
        self.gone = False
        """The process that wrote the run is not there any more, and there is no end event."""
        self._looked = -LOOKS_EVERY
        self._grew: float | None = None
        """When the journal was last seen to grow."""
        self._follower = self._follow()

    @property
    def state(self) -> RunState:
        """The folded state that is shown."""
        return self._follower.state if self.player is None else self.player.state

    @property
    def damage(self) -> list[Damage]:
        """What is wrong with the journal."""
        return self._follower.damage if self.player is None else self.player.damage

    @property
    def now(self) -> float:
        """The clock of what is shown: the trainer's as far as it can be told from here, or the moment of the replay."""
        if self.player is not None:
            return self.player.now
        now, last = self._clock(), self._follower.state.last_time
        if last is None:
            return now
        grew = self._grew
        if grew is None and last > now:  # a copy that was made just now has old times, and none that lie ahead
            grew = grown(list(list_segments(self.directory).values()))
        return last + heard(last, grew, now)

    def tick(self, worst: int | None = None) -> Snapshot:
        """Take in what is new, move a playing replay on, and build the snapshot, with rows of the ``worst`` only."""
        first = self._follower.state.last_time is None
        if self._follower.poll() and not first:
            self._grew = self._clock()
        if self.player is not None:
            return self.player.tick(worst)
        self._look()
        return self._builder.build(self._follower.state, self.now, self._follower.damage, worst, self.gone)

    def row(self, env_id: int) -> EnvironmentRow:
        """The board's row of an environment of the last snapshot."""
        return self._shown.row(self.state, env_id, self.now)

    def detail(self, env_id: int) -> EnvironmentDetail:
        """The drawer of one environment at the moment shown. Raises ``UsageError`` when there is no such one."""
        return build_detail(self.state, env_id, self.now, self._shown)

    def replay(self) -> Player:
        """The player, entered where the run stands now. Raises ``DataError`` when there is no journal yet."""
        if self.player is None:
            self.player = Player(self.directory, self._clock, self._cache, self._progress)
            self.player.seek(self._follower.state.events)
        elif self.player.timeline.events < self._follower.state.events:
            self.player.reopen()
        return self.player

    def live(self) -> None:
        """Back to now."""
        self.player = None

    @property
    def _shown(self) -> Builder:
        """What builds what is shown."""
        return self._builder if self.player is None else self.player.builder

    def _look(self) -> None:
        """Whether the run's process is there, as far as that can be told from here."""
        if self._follower.state.run.end_status is not None:
            self.gone = False
        elif (now := time.monotonic()) - self._looked >= LOOKS_EVERY:
            self._looked = now
            self.gone = self._seems_gone() and describe_run(self.directory).goes_on is False

    def _seems_gone(self) -> bool:
        """By the process alone: a description reads the journal's ends, anew whenever it grew."""
        try:
            return goes_on(RunDirectory.open(self.directory).manifest) is False
        except DataError:
            return False

    def _follow(self) -> Follower:
        size = sum(journal_bytes(self.directory))
        if size < LONG:
            return Follower(self.directory)
        data, position = Timeline(self.directory, cache=self._cache, progress=self._progress).end
        return Follower(self.directory, states.decode(data), position)
