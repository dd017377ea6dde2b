"""Watches a run, or a folder of runs, and says what becomes of them to those who do not look.

What is so when the watch begins is not told: of a run that ended yesterday nobody wants to hear today. A run that comes
later is told of from its first event.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from esper.karn.notify import Alert, alert_of
from esper.karn.runs import RunInfo, describe_run
from esper.karn.watch import RunWatch
from esper.leyline import DataError, EsperError
from esper.nissa.rundir import list_runs

AGAIN: Final = 600.0
"""Seconds within which a run that is silent, guesses or fills the disk once more is not told of again."""
LOST: Final = 3600.0
"""Seconds of silence after which a run is only looked at again when its journal grows."""
ENDS: Final = frozenset({"failed", "ended"})
OPEN: Final = 64
"""Runs that are watched at once, the newest; others are looked at when those have ended."""


@dataclass(slots=True)
class Memory:
    """What a run was when it was last looked at, and when it was told of."""

    so: frozenset[str] | None
    """``None`` until it is looked at for the first time, where that is not told."""
    told: dict[str, float] = field(default_factory=dict)

    def news(self, kinds: list[str], now: float) -> list[str]:
        """Of ``kinds``, what is to be told at ``now``."""
        before, self.so = self.so, frozenset(kinds)
        if before is None:
            return []
        fresh = [kind for kind in kinds if kind not in before]
        fresh = [kind for kind in fresh if kind in ENDS or now - self.told.get(kind, -AGAIN) >= AGAIN]
        self.told.update(dict.fromkeys(fresh, now))
        return fresh


class Lookout:
    """Looks at the runs in ``target``, a run directory or a folder of runs, and hands alerts to ``tell``.

    ``fresh`` says that whatever is there belongs to a run that was just begun, and is told of. Clocks are monotonic and
    the wall's.
    """

    def __init__(
        self,
        target: Path,
        tell: Callable[[Alert], None],
        say: Callable[[str], None],
        *,
        fresh: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._target, self._tell, self._say, self._fresh = target, tell, say, fresh
        self._clock, self._wall = clock, wall
        self._first = True
        self._watches: dict[Path, tuple[RunWatch, Memory]] = {}
        self._past: dict[Path, int] = {}
        """Runs that are over, or cannot be read -> bytes of the journal then."""

    def look(self) -> bool:
        """Look once; whether any run goes on, or may yet."""
        paths = list_runs(self._target) or [self._target]
        for path in [path for path in self._watches if path not in paths]:
            del self._watches[path]
        for path in reversed(paths):
            if path in self._watches or (len(self._watches) < OPEN and self._opens(path)):
                self._tick(path)
        self._first = False
        return bool(self._watches)

    def _opens(self, path: Path) -> bool:
        info = describe_run(path)
        if self._past.get(path) == info.bytes:
            return False
        known = self._first and not self._fresh
        if known and self._is_over(info):
            self._past[path] = info.bytes
            return False
        try:
            watch = RunWatch(path, clock=self._wall)
        except (EsperError, OSError) as problem:
            self._past[path] = info.bytes
            self._say(f"{path.name} cannot be watched: {problem}")
            return False
        self._watches[path] = watch, Memory(None if known else frozenset())
        return True

    def _is_over(self, info: RunInfo) -> bool:
        return info.end_status is not None or info.problem is not None or info.goes_on is False

    def _tick(self, path: Path) -> None:
        watch, memory = self._watches[path]
        try:
            snapshot = watch.tick(worst=0)
        except (DataError, OSError) as problem:
            self._say(f"{path.name} is not watched any more: {problem}")
            self._let_go(path)
            return
        news = memory.news(snapshot.verdict.tell, self._clock())
        if news:
            self._tell(alert_of(path.name, news, snapshot))
        lost = watch.gone or (snapshot.clock.silent_for or 0.0) > LOST
        if snapshot.run.state == "ended" or ("silent" in snapshot.verdict.tell and lost):
            self._let_go(path)

    def _let_go(self, path: Path) -> None:
        self._past[path] = describe_run(path).bytes
        del self._watches[path]
