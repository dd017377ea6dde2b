"""From a run directory to folded state: following a journal as it grows.

Whatever is wrong with the journal becomes a :class:`~esper.karn.schema.Damage` record; what was read before stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from esper.karn.aggregator import apply
from esper.karn.schema import Damage
from esper.karn.state import RunState
from esper.leyline import DataError
from esper.nissa.reader import JournalChanged, JournalTail, Position, ReadReport
from esper.nissa.segments import list_segments
from esper.nissa.wire import NewerSchemaError


class Follower:
    """Folds a journal's events as they are committed.

    ``state`` and ``position`` continue where an earlier reader stood. A journal that does not exist yet is waited for.
    """

    def __init__(self, directory: str | Path, state: RunState | None = None, position: Position | None = None) -> None:
        self.directory = Path(directory)
        self.state = RunState() if state is None else state
        self._tail = JournalTail(self.directory, position)
        self._stopped: Damage | None = None
        self._notes: list[Damage] = []

    @property
    def damage(self) -> list[Damage]:
        """What is wrong with the journal, so far."""
        stopped = [] if self._stopped is None else [self._stopped]
        return [*self._notes, *report_damage(self._tail.report), *stopped]

    @property
    def position(self) -> Position | None:
        """Place behind the last event folded."""
        return self._tail.position

    def poll(self) -> int:
        """Fold what was committed since the last poll and return how many events that were.

        A resume that takes back folded events, or a journal replaced by another, starts the fold over.
        """
        if self._stopped is not None and self._stopped.kind != "replaced":
            return 0
        try:
            events = self._tail.poll()
        except JournalChanged as change:
            if self._stopped is None or self._stopped.text != str(change):
                self._stopped = Damage(kind="replaced", text=str(change))
            return self._restart() if self._returned() else 0
        except (DataError, OSError) as problem:
            self._stopped = damage_of(problem)
            return 0
        if self._tail.rewinds:
            return self._restart()
        for event in events:
            apply(self.state, event)
        return len(events)

    def _returned(self) -> bool:
        return 1 in list_segments(self.directory)

    def _restart(self) -> int:
        if self._stopped is not None:
            self._notes.append(self._stopped)
            del self._notes[:-8]
        self._stopped = None
        self.state, self._tail = RunState(), JournalTail(self.directory)
        try:
            events = self._tail.poll()
        except (DataError, OSError) as problem:
            self._stopped = damage_of(problem)
            return 0
        for event in events:
            apply(self.state, event)
        return len(events)


def damage_of(problem: DataError | OSError) -> Damage:
    """An error of the reader as something to show."""
    return Damage(kind="newer" if isinstance(problem, NewerSchemaError) else "damaged", text=str(problem))


def report_damage(report: ReadReport) -> list[Damage]:
    """What a pass over a journal met, in words."""
    return [*_torn(report), *_resumed(report), *(Damage(kind="damaged", text=str(item)) for item in report.damage)]


def _torn(report: ReadReport) -> Iterable[Damage]:
    for torn in report.torn:
        text = f"{torn.file.name}: {torn.bytes} bytes ({torn.events} events) behind byte {torn.offset} not committed"
        yield Damage(kind="torn", text=text)


def _resumed(report: ReadReport) -> Iterable[Damage]:
    for rewind in report.rewinds:
        text = f"resumed: what {rewind.producer} said after event {rewind.after_seq} was superseded"
        yield Damage(kind="resumed", text=text)
