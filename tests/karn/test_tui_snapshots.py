"""Pictures of the terminal face, compared line by line; ``pytest --snapshot-update`` takes them anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from esper.karn.watch import RunWatch
from esper.leyline import TelemetryEvent
from karn import demo
from karn.journals import write_run
from karn.streams import START

pytest.importorskip("textual")
pytest.importorskip("pytest_textual_snapshot")

from textual.pilot import Pilot

from esper.karn.tui import Overwatch


class Fixed(Overwatch):
    """Without what differs from machine to machine: the rate achieved."""

    def advance(self) -> None:
        super().advance()
        self._achieved = 2.0
        self.paint()


def _app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: float = 1.0, without: Iterable[int] = ()) -> Fixed:
    hidden = frozenset(without)
    events: list[TelemetryEvent] = []
    for part in list(demo.epochs(count=46, start=START))[:42]:
        events += [event for event in part if event.env_id not in hidden]
    for number, event in enumerate(event for event in events if event.producer == "train"):
        event.seq = number + 1  # what was left out is not missing
    now = (events[-1].timestamp or 0.0) + silent
    run = write_run(tmp_path, events).relative_to(tmp_path)
    monkeypatch.chdir(tmp_path)  # so that a picture shows no path of this machine
    return Fixed(RunWatch(run, clock=lambda: now, cache=tmp_path / "cache"), rate=0.001)


def test_what_stalls_stands_first(snap_compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = _app(tmp_path, monkeypatch, without=(demo.FALLING, demo.BROKEN))
    assert snap_compare(app, terminal_size=(132, 30))


def test_the_failing_check_of_a_blocked_seed(
    snap_compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _app(tmp_path, monkeypatch)

    async def drill(pilot: Pilot[None]) -> None:
        await pilot.press("slash")
        await pilot.press("e", "n", "v", "equals_sign", str(demo.BLOCKED), "enter")
        await pilot.press("g", "enter")

    assert snap_compare(app, terminal_size=(132, 40), run_before=drill)


def test_silence_is_not_an_end(snap_compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert snap_compare(_app(tmp_path, monkeypatch, silent=41.0), terminal_size=(100, 24))
