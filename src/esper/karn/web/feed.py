"""From watched runs to connected clients: one newest view per run, one slot per client, newest wins.

A client that cannot keep up is never waited for. It finds the newest view when it is ready, and its frame says how many
it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from esper.karn.detail import build_detail
from esper.karn.player import Player
from esper.karn.replay import ReadProgress
from esper.karn.schema import EnvironmentDetail, Snapshot
from esper.karn.snapshot import Builder, opening
from esper.karn.state import RunState
from esper.karn.watch import RunWatch
from esper.karn.web.columns import BoardColumns, Columns
from esper.karn.web.frames import Mode, Sight, View, encode_frame
from esper.leyline import DataError, EsperError, decode_json

_log = logging.getLogger(__name__)

RATE: Final = 10.0
"""Views per second."""
LISTED: Final = 64
"""Environments whose whole rows every client gets, the worst first; others on request."""
READING_RATE: Final = 4.0
"""Views per second while the journal is read for the first time."""
REQUESTED: Final = 128
"""Most rows a client may ask for besides."""


class RunFeed:
    """The newest live view of one run, kept up while anyone looks.

    The run is read in a worker thread; ``lock`` is held while its state may change.
    """

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float] = time.time,
        cache: Path | None = None,
        progress: ReadProgress | None = None,
    ) -> None:
        self.directory, self.clock, self.cache, self.progress = directory, clock, cache, progress
        self.lock = anyio.Lock()
        self.newest: tuple[Snapshot, BoardColumns] | None = None
        self.reading: tuple[int, int] | None = None
        """Bytes read and bytes in all, while a long journal is read for the first time."""
        self.sequence = 0
        self._watch: RunWatch | None = None
        self._builder = Builder()
        self._columns = Columns()
        self._changed = asyncio.Condition()
        self._looking = 0
        self._task: asyncio.Task[None] | None = None

    async def refresh(self) -> tuple[Snapshot, BoardColumns]:
        """Take in what is new and tell those who wait."""
        saying = asyncio.create_task(self._say_reading()) if self._watch is None else None
        try:
            async with self.lock:
                newest = await anyio.to_thread.run_sync(self._take_in)
        finally:
            if saying is not None:
                saying.cancel()
        await self._publish(newest)
        return newest

    async def _publish(self, newest: tuple[Snapshot, BoardColumns]) -> None:
        async with self._changed:
            self.newest = newest
            self.sequence += 1
            self._changed.notify_all()

    async def _say_reading(self) -> None:
        while True:
            await asyncio.sleep(1 / READING_RATE)
            if self.reading is not None:
                now = self.clock()
                await self._publish((opening(now, *self.reading), Columns().board(RunState(), now)))

    def _read(self, done: int, total: int) -> None:
        self.reading = done, total
        if self.progress is not None:
            self.progress(done, total)

    async def whole(self) -> Snapshot:
        """The newest snapshot with the rows of all environments."""
        async with self.lock:
            return await anyio.to_thread.run_sync(lambda: self.watch.tick())

    async def detail(self, env_id: int) -> EnvironmentDetail:
        """The drawer of one environment now. Raises ``UsageError`` when there is no such one."""
        async with self.lock:
            return await anyio.to_thread.run_sync(self._fresh_detail, env_id)

    async def add(self, snapshot: Snapshot, envs: Iterable[int], focus: int | None) -> tuple[Snapshot, Any]:
        """``snapshot`` with the rows of ``envs``, and the drawer of ``focus``."""
        async with self.lock:
            return complete(snapshot, self._builder, self.watch.state, self.watch.now, envs, focus)

    async def newer(self, than: int) -> int:
        """Wait for a view newer than ``than`` and return its number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.sequence > than)
            return self.sequence

    @property
    def watch(self) -> RunWatch:
        """The watch behind the feed; the first use reads the journal. Only to be used under ``lock``."""
        if self._watch is None:
            try:
                self._watch = RunWatch(self.directory, clock=self.clock, cache=self.cache, progress=self._read)
            finally:
                self.reading = None
        return self._watch

    async def __aenter__(self) -> RunFeed:
        self._looking += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._looking -= 1
        if not self._looking and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self.refresh()
            except Exception:
                _log.exception("reading %s failed; trying again", self.directory)
                await asyncio.sleep(1.0)
            await asyncio.sleep(max(0.01, 1 / RATE - (time.monotonic() - began)))

    def _take_in(self) -> tuple[Snapshot, BoardColumns]:
        snapshot = self.watch.tick(worst=LISTED)
        return snapshot, self._columns.board(self.watch.state, self.watch.now)

    def _fresh_detail(self, env_id: int) -> EnvironmentDetail:
        self.watch.tick(worst=0)
        return self.watch.detail(env_id)


def complete(
    snapshot: Snapshot, builder: Builder, state: RunState, now: float, envs: Iterable[int], focus: int | None
) -> tuple[Snapshot, EnvironmentDetail | None]:
    """``snapshot`` with the rows of ``envs``, and the drawer of ``focus`` where there is such an environment."""
    wanted = [env for env in sorted(envs) if env in state.environments and str(env) not in snapshot.environments]
    if wanted:
        rows = {**snapshot.environments, **{str(env): builder.row(state, env, now) for env in wanted}}
        snapshot = msgspec.structs.replace(snapshot, environments=rows)
    if focus is None or focus not in state.environments:
        return snapshot, None
    return snapshot, build_detail(state, focus, now, builder)


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may ask for. Everything is about its own view; nothing reaches the run."""

    envs: list[int] | None = None
    """Rows wanted beyond the listed ones."""
    focus: int | None = None
    """Environment of the drawer; -1 closes it."""
    seek: int | None = None
    time: float | None = None
    step: int | None = None
    play: float | None = None
    pause: bool = False
    live: bool = False


class Client:
    """One connection's view: what it looks at, and what it was sent last."""

    def __init__(self, feed: RunFeed) -> None:
        self.feed = feed
        self.focus: int | None = None
        self.envs: frozenset[int] = frozenset()
        self.player: Player | None = None
        self.missed = 0
        self._note = ""
        self._sent = 0
        self._before: Sight | None = None
        self._columns = Columns()
        self._builder = Builder()
        self._lock = anyio.Lock()

    async def handle(self, raw: str | bytes) -> None:
        """Follow a request. One that makes no sense is answered in the next frame's mode."""
        try:
            request = decode_json(raw, "request not understood", Request)
        except DataError as problem:
            self._note = str(problem)
            return
        self._note = ""
        if request.envs is not None:
            self.envs = frozenset(request.envs[:REQUESTED])
        if request.focus is not None:
            self.focus = request.focus if request.focus >= 0 else None
        async with self._lock:
            try:
                await anyio.to_thread.run_sync(self._travel, request)
            except EsperError as problem:
                self._note = str(problem)

    async def frame(self, skipped: int) -> bytes:
        """The next frame, from what was sent last to what is so now; ``skipped`` views were missed meanwhile."""
        self.missed += skipped
        sight = await self._look()
        self._sent += 1
        data = encode_frame(self._sent, self.missed, self._before, sight)
        self._before = sight
        return data

    async def _look(self) -> Sight:
        async with self._lock:
            player = self.player
            if player is not None:
                snapshot, detail, board = await anyio.to_thread.run_sync(self._replayed, player)
                return Sight(View(snapshot, Mode("replay", player.playing, player.speed, self._note), detail), board)
        newest, board = self.feed.newest or await self.feed.refresh()
        if self.feed.reading is None and (self.envs or self.focus is not None):
            snapshot, detail = await self.feed.add(newest, self.envs, self.focus)
        else:
            snapshot, detail = newest, None
        return Sight(View(snapshot, Mode("live", note=self._note), detail), board)

    def _replayed(self, player: Player) -> tuple[Snapshot, EnvironmentDetail | None, BoardColumns]:
        snapshot = player.tick(worst=LISTED)
        snapshot, detail = complete(snapshot, self._builder, player.state, player.now, self.envs, self.focus)
        return snapshot, detail, self._columns.board(player.state, player.now)

    def _travel(self, request: Request) -> None:
        if request.live:
            self.player = None
            return
        moves = (request.seek, request.time, request.step, request.play)
        if all(move is None for move in moves) and not request.pause:
            return
        if self.player is None:
            self.player = Player(self.feed.directory, self.feed.clock, self.feed.cache, self.feed.progress)
            self.player.seek(self.player.timeline.events)
        elif not self.player.playing:
            self.player.reopen()
        _move(self.player, request)
        self._builder = Builder()


def _move(player: Player, request: Request) -> None:
    if request.seek is not None:
        player.playing = False
        player.seek(request.seek)
    if request.time is not None:
        player.playing = False
        player.seek_time(request.time)
    if request.step is not None:
        player.step(request.step)
    if request.play is not None:
        player.play(min(max(request.play, 0.01), 10_000.0))
    if request.pause:
        player.playing = False
