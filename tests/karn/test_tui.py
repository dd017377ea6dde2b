from __future__ import annotations

from pathlib import Path

import pytest

from esper.karn.board import row_pieces
from esper.karn.drawer import sparkline
from esper.karn.parts import Curve
from esper.karn.schema import EnvironmentRow
from esper.karn.watch import RunWatch
from esper.leyline import TelemetryEvent
from esper.nissa.journal import JournalWriter
from karn.journals import RUN_ID, write_run
from karn.streams import START, Recorder, begin, begin_episode, epoch_done, story

pytest.importorskip("textual")

from textual.widgets import Input, Static

from esper.karn import tui
from esper.karn.tui import BoardView, Overwatch, Words


def _app(tmp_path: Path, events: list[TelemetryEvent] | None = None) -> Overwatch:
    path = write_run(tmp_path, story() if events is None else events)
    return Overwatch(RunWatch(path, clock=lambda: START + 60, cache=tmp_path / "cache"), rate=0.01)


def _text(app: Overwatch, name: str) -> str:
    return str(app.query_one(name, Static).content)


def _line(app: Overwatch, y: int) -> str:
    return app.query_one(BoardView).render_line(y).text


@pytest.mark.anyio
async def test_board_and_drill_down(tmp_path: Path) -> None:
    app = _app(tmp_path)
    async with app.run_test(size=(160, 40)) as pilot:
        assert "STATE      completed after 12 s" in _text(app, "#head")
        await pilot.press("v")
        assert "HELD BACK  G2 refused 1 time" in _text(app, "#detail")
        await pilot.press("escape")
        assert _line(app, 0).startswith(">~      1 grown")
        assert "●blocks_1:conv3 1 G5+" in _line(app, 1)
        await pilot.press("j", "enter")
        detail = _text(app, "#detail")
        assert detail.startswith("ENVIRONMENT 0") and "G5 passed; asked 2 times, refused 1 of them" in detail
        assert "ok   removal cost 1.6, needs >= 0.5" in detail
        await pilot.press("escape")
        assert app.pane is None


@pytest.mark.anyio
async def test_filter_with_an_error_and_then_right(tmp_path: Path) -> None:
    app = _app(tmp_path)
    async with app.run_test(size=(160, 40)) as pilot:
        await pilot.press("slash")
        app.query_one("#ask", Input).value = "stge=x"
        await pilot.press("enter")
        assert "did you mean 'stage'" in _text(app, "#foot")
        app.query_one("#ask", Input).value = "stage=fossilized"
        await pilot.press("enter")
        assert app.query_one(BoardView).envs == [0]
        assert "hides 1" in _text(app, "#foot")
        await pilot.press("escape")
        assert len(app.query_one(BoardView).envs) == 2


@pytest.mark.anyio
async def test_replay_keys(tmp_path: Path) -> None:
    app = _app(tmp_path)
    async with app.run_test(size=(160, 40)) as pilot:
        await pilot.press("0", "l", "l")
        assert "replay paused" in _text(app, "#foot") and "event 3" in _text(app, "#foot")
        await pilot.press("h", "L")
        assert app.viewer.state.events == len(story())
        await pilot.press("space")
        assert app.viewer.player is not None and app.viewer.player.playing
        await pilot.press("right_square_bracket", "space")
        assert app.viewer.player.speed == 4.0 and not app.viewer.player.playing
        await pilot.press("n")
        assert app.viewer.player is None


@pytest.mark.anyio
async def test_events_help_and_text_that_looks_like_markup(tmp_path: Path) -> None:
    events = story()
    events[-2].severity = "warning"
    events[-1].data["reason"] = "[bold]boom[/bold] <img onerror=x>"
    app = _app(tmp_path, events)
    async with app.run_test(size=(160, 40)) as pilot:
        await pilot.press("e")
        assert "[bold]boom[/bold] <img onerror=x>" in _text(app, "#detail")
        await pilot.press("question_mark")
        assert "play or pause" in _text(app, "#detail")


@pytest.mark.anyio
async def test_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    app = Overwatch(RunWatch(tmp_path, clock=lambda: START, cache=tmp_path / "cache"), rate=0.01)
    async with app.run_test(size=(80, 20)) as pilot:
        assert "no event yet" in _text(app, "#head")
        await pilot.press("enter", "0")
        assert "no journal" in _text(app, "#foot")


def test_sparkline_marks_what_is_not_finite() -> None:
    curve = Curve(
        at=[1, 2, 3], low=[0.0, "NaN", 1.0], high=[0.0, "NaN", 1.0], last=[0.0, "NaN", 1.0], nans=[0, 1, 0], seen=3
    )
    assert sparkline(curve) == "▁x█"


@pytest.mark.anyio
async def test_only_what_changed_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rec = Recorder()
    begin(rec, envs=3)
    for env in range(3):
        begin_episode(rec, env)
        epoch_done(rec, env, 1, 50.0)
    drawn: list[int] = []

    def pieces(row: EnvironmentRow) -> list[tuple[str, str]]:
        drawn.append(row.env)
        return row_pieces(row)

    monkeypatch.setattr(tui, "row_pieces", pieces)
    run = tmp_path / RUN_ID
    run.mkdir()
    with JournalWriter(run, RUN_ID) as writer:

        def commit() -> None:
            for event in rec.events:
                writer(event)
            rec.events.clear()
            writer.flush()

        commit()
        app = Overwatch(RunWatch(run, clock=lambda: rec.now, cache=tmp_path / "cache"), rate=0.01)
        async with app.run_test(size=(160, 40)) as pilot:
            await pilot.pause()
            drawn.clear()
            app.advance()
            await pilot.pause()
            assert drawn == [], "nothing happened"
            epoch_done(rec, 1, 2, 77.0)
            commit()
            app.advance()
            await pilot.pause()
            assert drawn == [1]
            drawn.clear()
            await pilot.press("j")
            assert sorted(drawn) == [0, 1], "the mark of the chosen one moved"


@pytest.mark.anyio
async def test_a_taller_text_gets_its_room(tmp_path: Path) -> None:
    app = _app(tmp_path)
    async with app.run_test(size=(80, 40)) as pilot:
        head = app.query_one("#head", Words)
        head.show("one line")
        await pilot.pause()
        assert head.size.height == 1
        head.show("word " * 30)
        await pilot.pause()
        assert head.size.height == 2
