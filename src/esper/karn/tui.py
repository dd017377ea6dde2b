"""Overwatch in a terminal: the same snapshot as every face, twice a second.

The board draws only the lines that are seen (Textual's Line API). Colour repeats what marks and words say already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from esper.karn import plain
from esper.karn.board import HEAD, row_pieces
from esper.karn.drawer import drawer_text
from esper.karn.filter import Filter, parse
from esper.karn.player import Player
from esper.karn.replay import ReadProgress
from esper.karn.schema import EnvironmentRow, Snapshot
from esper.karn.watch import RunWatch
from esper.karn.words import duration
from esper.leyline import DataError, MissingExtraError, UsageError, visible

try:
    from rich.segment import Segment
    from rich.style import Style
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding, BindingType
    from textual.containers import VerticalScroll
    from textual.geometry import Size
    from textual.scroll_view import ScrollView
    from textual.strip import Strip
    from textual.widgets import Input, Static
except ImportError:
    raise MissingExtraError("the terminal face", "tui") from None

RATE = 2.0
"""Frames per second asked for; the header shows what was achieved."""
HEAD_LINES = frozenset({"verdict", "state", "now", "result", "next"})
"""Lines of the verdict that always stand there; the whole of it is one key away."""
SPEEDS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)

HELP = """\
j k, up down   move            Enter  open the environment    Esc  close, clear the filter
g G            first, last     /      filter                  e    events
space          play or pause   h l    one event back, on      H L  100 events back, on
[ ]            slower, faster  0 $    start, end of the run   n    now (live)
?              this help       v      verdict                 q    quit

filter: env=3 stage=blending severity>=warning text"""

STYLES = {
    "critical": Style(color="#ff7b78", bold=True, reverse=True),
    "bad": Style(color="#ef9459", bold=True),
    "watch": Style(color="#dcb75e", bold=True),
    "GERMINATED": Style(color="#b3c96b"),
    "TRAINING": Style(color="#74b0ea"),
    "BLENDING": Style(color="#b49cf2"),
    "HOLDING": Style(color="#e3bd5f"),
    "FOSSILIZED": Style(color="#5cc79c"),
    "PRUNED": Style(color="#c97a7c"),
    "DORMANT": Style(dim=True),
}
"""The page's colours; a terminal with fewer gets the nearest ones."""
GROUND = Style(color="#e2e7e6", bgcolor="#0f1315")
CHOSEN = Style(color="#e2e7e6", bgcolor="#1c2a2b")
PLAIN = Style()


class BoardView(ScrollView, can_focus=False):
    """Environments, outliers first. Keeps the chosen environment chosen while rows move.

    ``row`` gives the row of an environment; it is asked only for lines that are seen.
    """

    def __init__(self, row: Callable[[int], EnvironmentRow]) -> None:
        super().__init__(id="board")
        self.envs: list[int] = []
        self.chosen: int | None = None
        self._row = row
        self._drawn: dict[int, tuple[EnvironmentRow, bool] | None] = {}
        """line -> what was drawn there last: the row, and whether it was the chosen one"""

    def show(self, envs: list[int]) -> None:
        """Show these environments, in this order; lines that stay as they are, are not drawn again."""
        self.envs = envs
        if self.chosen is None and envs:
            self.chosen = envs[0]
        self.virtual_size = Size(1, len(envs))
        top = self.scroll_offset.y
        for line in range(top, top + self.size.height):
            if line not in self._drawn or self._drawn[line] != self._content(line):
                self.refresh_line(line)

    def _content(self, line: int) -> tuple[EnvironmentRow, bool] | None:
        if line >= len(self.envs):
            return None
        return self._row(self.envs[line]), self.envs[line] == self.chosen

    @property
    def place(self) -> int:
        """Line of the chosen environment; the first one while the filter hides it."""
        return self.envs.index(self.chosen) if self.chosen in self.envs else 0

    def move(self, to: int) -> None:
        """Choose the environment in line ``to``; it is marked when the board is shown next."""
        if self.envs:
            line = max(0, min(to, len(self.envs) - 1))
            self.chosen = self.envs[line]
            top, height = self.scroll_offset.y, max(1, self.size.height)
            if not top <= line < top + height:
                self.scroll_to(y=line if line < top else line - height + 1, animate=False)

    def render_line(self, y: int) -> Strip:
        """One line of the board."""
        line = y + self.scroll_offset.y
        content = self._drawn[line] = self._content(line)
        if content is None:
            return Strip.blank(self.size.width, GROUND)
        row, chosen = content
        segments = [Segment(">" if chosen else " ", PLAIN)]
        segments += [Segment(visible(text), STYLES.get(style, PLAIN)) for text, style in row_pieces(row)]
        strip = Strip(segments).crop_extend(self.scroll_offset.x, self.scroll_offset.x + self.size.width, PLAIN)
        return strip.apply_style(CHOSEN if chosen else GROUND)


class Words(Static):
    """Plain text, drawn again only when it changed and laid out again only when its height did."""

    def __init__(self, text: str = "", **options: Any) -> None:
        super().__init__(text, markup=False, **options)
        self._text = text

    def show(self, text: str) -> None:
        """Show ``text``, as it is."""
        if text == self._text:
            return
        self._text = text
        self.update(Text(text), layout=False)
        if self.size.height != self.visual.get_height(self.styles.get_rules(), max(1, self.size.width)):
            self.refresh(layout=True)


class Overwatch(App[None]):
    """The terminal face over a :class:`~esper.karn.watch.RunWatch`."""

    CSS = """
    Screen, #board, #drawer { background: #0f1315; color: #e2e7e6; }
    #board, #drawer { scrollbar-size-vertical: 1; scrollbar-background: #0f1315; scrollbar-color: #364146; }
    #board { overflow-x: hidden; }
    #head, #columns, #foot { height: auto; }
    #head { border-bottom: solid #364146; }
    #columns, #foot { color: #829094; }
    #drawer { display: none; height: 60%; border-top: solid #364146; }
    #drawer.open { display: block; }
    #ask { display: none; }
    #ask.open { display: block; }
    """
    TITLE = "Overwatch"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(keys, action, show=False)
        for keys, action in (
            ("j,down", "move(1)"),
            ("k,up", "move(-1)"),
            ("pagedown", "move(20)"),
            ("pageup", "move(-20)"),
            ("g,home", "move(-1000000)"),
            ("G,end", "move(1000000)"),
            ("enter", "open"),
            ("escape", "close"),
            ("slash", "ask"),
            ("e", "events"),
            ("v", "verdict"),
            ("space", "play"),
            ("h,left", "step(-1)"),
            ("l,right", "step(1)"),
            ("H", "step(-100)"),
            ("L", "step(100)"),
            ("left_square_bracket", "speed(-1)"),
            ("right_square_bracket", "speed(1)"),
            ("0", "start"),
            ("dollar_sign", "end"),
            ("n", "now"),
            ("question_mark", "help"),
            ("q", "quit"),
        )
    ]

    def __init__(self, viewer: RunWatch, *, rate: float = RATE, replay: bool = False) -> None:
        super().__init__()
        self.viewer = viewer
        self.snapshot_shown: Snapshot | None = None
        self.wanted = Filter("", ())
        self.pane: str | None = None
        """What the lower pane shows: ``environment``, ``events``, ``help`` or nothing."""
        self._rate, self._replay = rate, replay
        self._achieved, self._last = 0.0, time.monotonic()

    def compose(self) -> ComposeResult:
        """Head, board, drawer, filter line, foot."""
        yield Words(id="head")
        yield Words(" " + HEAD, id="columns")
        yield BoardView(self.viewer.row)
        with VerticalScroll(id="drawer"):
            yield Words(id="detail")
        yield Input(placeholder="env=3 stage=blending severity>=warning text", id="ask")
        yield Words(id="foot")

    def on_mount(self) -> None:
        """Start the clock."""
        self.query_one("#drawer").can_focus = False
        if self._replay:
            self._from_the_start()
        self.set_interval(1 / self._rate, self.advance)
        self.advance()

    def advance(self) -> None:
        """One frame: what is new, shown."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        if passed > 0:
            self._achieved = 1 / passed if not self._achieved else 0.8 * self._achieved + 0.2 / passed
        self.snapshot_shown = self.viewer.tick(worst=0)
        self.paint()

    def paint(self) -> None:
        """Show the snapshot at hand."""
        shot = self.snapshot_shown
        if shot is None:
            return
        envs = [env for group in shot.devices for env in group.environments]
        listed = [env for env in envs if self.wanted.row(self.viewer.row(env))] if self.wanted.terms else envs
        self.query_one(BoardView).show(listed)
        self.query_one("#head", Words).show(head_text(shot))
        self.query_one("#foot", Words).show(self._foot(shot, len(envs) - len(listed)))
        if self.pane is not None:
            self.query_one("#detail", Words).show(self._pane_text(shot))

    def _foot(self, shot: Snapshot, hidden: int) -> str:
        player = self.viewer.player
        mode = "live"
        if player is not None:
            mode = f"replay {'playing' if player.playing else 'paused'} at {player.speed:g}x, event {shot.clock.events}"
        wanted = f"  filter {self.wanted.text!r} hides {hidden}" if self.wanted.terms else ""
        return f"{mode}  {self._achieved:.1f} frames/s{wanted}  ? help"

    def _pane_text(self, shot: Snapshot) -> str:
        if self.pane == "help":
            return HELP
        if self.pane == "verdict":
            return "\n".join(plain.verdict_lines(shot.verdict))
        if self.pane == "events":
            items = [item for item in shot.feed if self.wanted.item(item)]
            lines = [f"[{item.severity}] {_place(item)}{item.text}" for item in reversed(items)]
            return "\n".join([f"EVENTS  {len(items)} of {len(shot.feed)}, newest first", *map(visible, lines)])
        chosen = self.query_one(BoardView).chosen
        if chosen is None:
            return "no environment yet"
        try:
            return drawer_text(self.viewer.detail(chosen), shot.run.unit)
        except UsageError as gone:
            return visible(gone)

    def _show_pane(self, pane: str | None) -> None:
        self.pane = pane
        self.query_one("#drawer").set_class(pane is not None, "open")
        self.query_one("#drawer", VerticalScroll).scroll_home(animate=False)
        self.paint()

    def action_move(self, by: int) -> None:
        """Choose another environment."""
        board = self.query_one(BoardView)
        board.move(board.place + by)
        self.paint()

    def action_open(self) -> None:
        """Open the drawer of the chosen environment."""
        self._show_pane("environment")

    def action_events(self) -> None:
        """Show the event feed, or close it."""
        self._show_pane(None if self.pane == "events" else "events")

    def action_verdict(self) -> None:
        """Show the whole verdict, or close it."""
        self._show_pane(None if self.pane == "verdict" else "verdict")

    def action_help(self) -> None:
        """Show the keys, or close them."""
        self._show_pane(None if self.pane == "help" else "help")

    def action_close(self) -> None:
        """Close what is open; with nothing open, clear the filter."""
        ask = self.query_one("#ask", Input)
        if ask.has_class("open"):
            self._stop_asking()
        elif self.pane is not None:
            self._show_pane(None)
        else:
            self.wanted = Filter("", ())
            self.paint()

    def action_ask(self) -> None:
        """Type a filter."""
        ask = self.query_one("#ask", Input)
        ask.add_class("open")
        ask.value = self.wanted.text
        ask.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Use the filter, or say what is wrong with it."""
        try:
            self.wanted = parse(event.value)
        except UsageError as problem:
            self.query_one("#foot", Words).show(visible(problem))
            return
        self._stop_asking()
        self.paint()

    def _stop_asking(self) -> None:
        ask = self.query_one("#ask", Input)
        ask.remove_class("open")
        self.set_focus(None)

    def action_play(self) -> None:
        """Play or pause."""

        def toggle(player: Player) -> None:
            if player.playing:
                player.playing = False
            else:
                player.play()

        self._travel(toggle)

    def action_step(self, events: int) -> None:
        """Move by events."""
        self._travel(lambda player: player.step(events))

    def action_speed(self, by: int) -> None:
        """Another speed of replay."""

        def change(player: Player) -> None:
            nearest = min(range(len(SPEEDS)), key=lambda at: abs(SPEEDS[at] - player.speed))
            player.speed = SPEEDS[max(0, min(nearest + by, len(SPEEDS) - 1))]

        self._travel(change)

    def action_start(self) -> None:
        """To the first event."""
        self._travel(lambda player: player.seek(1))

    def action_end(self) -> None:
        """To the last event."""
        self._travel(lambda player: player.seek(player.timeline.events))

    def action_now(self) -> None:
        """Back to live."""
        self.viewer.live()
        self.advance()

    def _from_the_start(self) -> None:
        def begin(player: Player) -> None:
            player.seek(1)
            player.play()

        self._travel(begin)

    def _travel(self, move: Callable[[Player], None]) -> None:
        """Do it, or say in the foot why it cannot be done (no journal to replay yet)."""
        try:
            move(self.viewer.replay())
        except DataError as problem:
            self.query_one("#foot", Words).show(visible(problem))
            return
        self.advance()


def head_text(shot: Snapshot) -> str:
    """Run, state, pulse, bound, and everything that is wrong, in a few lines."""
    run, progress = shot.run, shot.run.progress
    names = " · ".join(str(name) for name in (run.task, run.policy, run.run_id) if name is not None)
    done = f"{progress.epochs_done} epochs"
    if progress.share is not None:
        done += f" ({progress.share:.0%})"
    if progress.eta_seconds is not None and run.state == "running":
        done += f", {duration(progress.eta_seconds)} left"
    lines = [f"ESPER  {names or 'no run yet'}  {done}", *plain.verdict_lines(shot.verdict, HEAD_LINES)]
    if shot.levels:
        lines.append(f"envs   {plain.levels_words(shot)}")
    if judged := [pulse for pulse in shot.pulse if pulse.threshold is not None]:
        lines.append("pulse  " + "  ".join(f"{p.name.replace('_', ' ')} {plain.brief(p)} [{p.level}]" for p in judged))
    lines.append(f"bound  {shot.bound.kind}: {shot.bound.text}. {shot.bound.advice}")
    if shot.host is not None:
        lines.append(f"body   {plain.body_words(shot.host, run.device)}")
    lines += [f"JOURNAL {damage.kind}: {damage.text}" for damage in shot.damage[-2:]]
    lost = sum(drop.count for drop in shot.drops)
    if lost or shot.missing:
        lines.append(f"LOST  {lost} dropped, {shot.missing} missing from the sequence")
    return "\n".join(map(visible, lines))


def run_tui(directory: str | Path, *, replay: bool = False, progress: ReadProgress | None = None) -> None:
    """Open the run in ``directory`` in the terminal; with ``replay`` from its first event on.

    ``progress`` is told about the first reading of a long journal, which comes before the screen is taken.
    """
    Overwatch(RunWatch(directory, progress=progress), replay=replay).run()


def _place(item: Any) -> str:
    parts = [f"{name} {v}" for name in ("env", "epoch", "slot") if (v := getattr(item, name)) is not None]
    return f"{' '.join(parts)}: " if parts else ""
