"""The run at a glance, line by line, on a terminal or in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, Final

from rich.console import Console
from rich.text import Text

from esper.leyline import SEVERITIES, TelemetryEvent, visible
from esper.leyline import TelemetryEventType as T

PROGRESS_SECONDS: Final = 10.0
"""Where there is no terminal to keep a progress line on, one is printed this often."""

ASCII_SIGNS: Final = str.maketrans(
    {"·": "|", "→": ">", "✗": "x", "✓": "+", "–": "-", "±": "+-", "×": "x", "…": "...", "•": "*"}
)
_SEVERITY_STYLE: Final = {"debug": "dim", "info": "", "warning": "yellow", "error": "bold red", "critical": "bold red"}

Piece = tuple[str, str]
"""Text and its style. Text is never read as markup, and control characters in it are shown, not sent."""


class ConsoleSink:
    """Prints what a person wants to see pass by: lives of seeds, why a gate is closed, rollbacks, ends of episodes.

    A terminal also gets one progress line that is written over; elsewhere lines are plain and progress is printed every
    :data:`PROGRESS_SECONDS`. A gate that fails for the same reasons as before is not repeated. ``quiet`` leaves only
    warnings and errors. ``console`` is one that shows a live display: lines are printed above it, and there is no
    progress line beside it.
    """

    def __init__(self, quiet: bool = False, *, file: IO[str] | None = None, console: Console | None = None) -> None:
        self._console = console or _Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
        self._live = console is None and self._console.is_terminal and not quiet
        self._utf8 = (self._console.encoding or "").lower().startswith("utf")
        self._quiet = quiet
        self._progress_shown = False
        self._progress_at: float | None = None
        self._blocked: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._metric: dict[str, Any] = {}

    def __call__(self, event: TelemetryEvent) -> None:
        if event.event_type is T.TRAINING_STARTED:
            self._metric = event.data.get("metric", {})
        if self._quiet and SEVERITIES.index(event.severity) < SEVERITIES.index("warning"):
            return
        if event.event_type is T.EPOCH_COMPLETED:
            self._progress(event)
            return
        if event.event_type is T.SEED_GATE_EVALUATED and not self._gate_is_news(event):
            return
        pieces = self._pieces(event)
        if pieces:
            self._print(pieces)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._console.file.flush()

    def close(self) -> None:
        """Take the progress line away."""
        self._clear_progress()
        self.flush()

    def _pieces(self, event: TelemetryEvent) -> list[Piece]:
        writer = _WRITERS.get(event.event_type)
        if writer is not None:
            said = list(writer(event, self._score))
            return [(_where(event), "dim"), *said] if said else []
        if event.severity == "info" or event.severity == "debug":
            return []
        style = _SEVERITY_STYLE[event.severity]
        return [(_where(event), "dim"), (event.event_type.name, style), (f"  {event.message}", "")]

    def _gate_is_news(self, event: TelemetryEvent) -> bool:
        key = (event.env_id, event.episode, event.slot_id, event.seed_id, event.data.get("gate"))
        reasons = tuple(str(check).partition("=")[0] for check in event.data.get("checks_failed", ()))
        if event.data.get("passed"):
            self._blocked.pop(key, None)
            return False
        news = self._blocked.get(key) != reasons
        self._blocked[key] = reasons
        return news

    def _score(self, value: Any) -> str:
        if value is None:
            return "not measured"
        unit = self._metric.get("unit", "")
        return f"{value:.2f}{' ' if unit else ''}{unit}" if isinstance(value, float | int) else str(value)

    def _progress(self, event: TelemetryEvent) -> None:
        data = event.data
        metric = self._metric.get("name", "metric")
        stages = data.get("stages", {})
        slots = "  ".join(
            f"{slot} {stage.lower()} {_figure(data.get('alphas', {}).get(slot))}"
            for slot, stage in stages.items()
            if stage != "DORMANT"
        )
        pieces = [
            (_where(event), "dim"),
            (f"epoch {_known(event.epoch)}", "bold"),
            (f"  loss {_figure(data.get('validation_loss'))}", ""),
            (f"  {metric} {self._score(data.get('validation_metric'))}", ""),
            *([(f"  {data['arm']}", "dim")] if "arm" in data else []),
            *([(f"  {slots}", "cyan")] if slots else []),
        ]
        if self._live:
            self._clear_progress()
            line = self._line(pieces)
            line.truncate(max(1, self._console.width - 1), overflow="ellipsis" if self._utf8 else "crop")
            self._console.print(line, end="", soft_wrap=True)
            self._progress_shown = True
            return
        now = event.t_mono if event.t_mono is not None else 0.0
        if self._progress_at is None or now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._print(pieces)

    def _print(self, pieces: list[Piece]) -> None:
        self._clear_progress()
        self._console.print(self._line(pieces), soft_wrap=True)

    def _line(self, pieces: list[Piece]) -> Text:
        line = Text()
        for text, style in pieces:
            shown = visible(text)
            if not self._utf8:
                shown = shown.translate(ASCII_SIGNS).encode("ascii", "backslashreplace").decode()
            line.append(shown, style or None)
        line.rstrip()
        return line

    def _clear_progress(self) -> None:
        if self._progress_shown:
            self._console.file.write("\r\x1b[2K")
            self._progress_shown = False


def warn(text: str) -> None:
    """One line on standard error about what is going on now; without a reader it is lost, and nothing else is."""
    with suppress(OSError, ValueError):
        print(f"esper: {text}", file=sys.stderr, flush=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader of a pipe has gone: let the hub detach this sink and go on, where rich would end the program."""
        raise BrokenPipeError("the reader of the output has gone")


def _where(event: TelemetryEvent) -> str:
    parts = []
    if event.episode is not None:
        parts.append(f"ep {event.episode}")
    if event.env_id is not None:
        parts.append(f"env {event.env_id}")
    if event.epoch is not None and event.event_type is not T.EPOCH_COMPLETED:
        parts.append(f"epoch {event.epoch}")
    if event.slot_id is not None:
        parts.append(event.slot_id)
    return " · ".join(parts) + "  " if parts else ""


def _known(value: Any) -> str:
    return "?" if value is None else str(value)


def _figure(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(check: dict[str, Any]) -> str:
    measured = check.get("measured")
    unit = f" {check['unit']}" if check.get("unit") else ""
    if measured is None:
        return f"{check['id']} was not measured (needs {check['comparison']} {_figure(check['threshold'])}{unit})"
    return f"{check['id']} is {_figure(measured)}, needs {check['comparison']} {_figure(check['threshold'])}{unit}"


Score = Callable[[Any], str]


def _started(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    data = event.data
    yield "run ", "bold"
    yield _known(data.get("run_id")), "bold"
    yield (
        f"  {_known(data.get('task'))} · {_known(data.get('policy'))} policy · {_known(data.get('episodes'))} episodes",
        "",
    )
    yield f" × {_known(data.get('max_epochs'))} epochs · {_known(data.get('device'))}", ""


def _ended(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    status = str(event.data.get("status"))
    yield f"run {status}", "bold green" if status == "completed" else "bold red"
    if event.data.get("reason"):
        yield f": {event.data['reason']}", ""
    yield f"  {_figure(event.data.get('seconds'))} s", "dim"


def _episode_ended(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    data = event.data
    kept = data.get("seeds", ())
    yield "episode ended", "bold"
    yield f" ({_known(data.get('arm'))}, {_known(data.get('status'))})", "dim"
    yield f"  validation {score(data.get('validation_metric'))}", ""
    if "test_metric" in data:
        yield f" · test {score(data['test_metric'])}", "bold"
    yield f" · {len(kept)} seed{'s' * (len(kept) != 1)} kept", ""
    if data.get("delivered") == "best":
        yield f" · as it was in epoch {_known(data.get('delivered_epoch'))}, its best", ""
    yield f" · {_known(data.get('total_parameters'))} parameters", ""


def _germinated(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "germinated", "green"
    yield f" {_known(event.data.get('blueprint'))} ({_known(event.seed_id)})", ""
    if "parameters" in event.data:
        yield f" · {event.data['parameters']} parameters", "dim"


_TOLD_APART: Final = frozenset({"GERMINATED", "FOSSILIZED", "PRUNED", "EMBARGOED", "RESETTING", "DORMANT"})
"""Stages that have an event of their own, or follow from one."""


def _moved(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    if event.data.get("to") in _TOLD_APART:
        return
    yield f"{_known(event.data.get('from'))} → {_known(event.data.get('to'))}", "cyan"
    if event.data.get("reason"):
        yield f"  {event.data['reason']}", "dim"


def _gate(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    data = event.data
    yield f"✗ {_known(data.get('gate'))} blocks {_known(data.get('target_stage'))}", "yellow"
    failed = [_check(check) for check in data.get("checks", ()) if not check.get("passed")]
    yield f": {'; '.join(failed or [str(check) for check in data.get('checks_failed', ())])}", ""


def _fossilized(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "✓ fossilized", "bold green"
    yield f" {_known(event.data.get('blueprint'))}", ""
    yield f" · without it {score(event.data.get('removal_cost'))} worse", ""


def _reopened(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "open again", "green"
    yield f" · {_known(event.data.get('generation'))} of {_known(event.data.get('generations'))} kept", ""


def _pruned(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "pruned", "magenta"
    yield f" {_known(event.data.get('blueprint'))} by {_known(event.data.get('by'))}", ""
    yield f": {_known(event.data.get('reason'))}", ""


def _vetoed(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield f"✗ {_known(event.data.get('by'))} vetoes {_known(event.data.get('target_stage'))}", "yellow"
    yield f": {_known(event.data.get('reason'))}", ""


def _violated(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "✗ isolation violated", "bold red"
    yield f": gradient {_figure(event.data.get('host_gradient_norm'))} reached the host", ""


def _panic(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "✗ governor panics", "bold red"
    yield f": {_known(event.data.get('reason'))} {_figure(event.data.get('measured'))}", ""
    if "threshold" in event.data:
        yield f", limit {_figure(event.data['threshold'])}", ""


def _rollback(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    data = event.data
    yield f"rolled back to epoch {_known(data.get('to_epoch'))}", "bold red"
    yield f": {_known(data.get('reason'))} · cause {_known(data.get('cause'))}", ""
    if "suspect" in data:
        yield f" · {data['suspect']} vetoed for {_known(data.get('vetoed_epochs'))} epochs", ""


def _command_failed(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield f"✗ {_known(event.data.get('op'))} refused", "yellow"
    yield f": {_known(event.data.get('why_not'))}", ""


def _checkpoint(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    saved = event.event_type is T.CHECKPOINT_SAVED
    yield f"checkpoint {'saved' if saved else 'loaded'}", "blue"
    yield f" {_known(event.data.get('path'))}", "dim"
    if event.data.get("exact") is False:
        yield f" · not exact: {', '.join(event.data.get('differences', ()))}", "yellow"


def _replaced(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield f"worker {_known(event.data.get('worker'))} was lost", "yellow"
    repeated = ", ".join(map(str, event.data.get("environments", ()))) or "no environment"
    yield f" {_known(event.data.get('reason'))} · another repeats {repeated}", ""


def _exported(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    yield "model exported", "bold green"
    yield f" {_known(event.data.get('path'))} · {_known(event.data.get('parameters'))} parameters", ""
    if folded := len(event.data.get("folded", ())):
        yield f" · {folded} seed{'s' * (folded != 1)} folded into weights", ""


def _dropped(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    data = event.data
    if data.get("reason") == "sink_failed" and not event.message:
        return  # the closing count of a sink whose failure was told when it came
    style = _SEVERITY_STYLE[event.severity]
    yield "telemetry dropped", style
    yield f"  {_known(data.get('count'))} × {_known(data.get('event_type'))} to {_known(data.get('sink'))}", ""
    yield f": {event.message or _known(data.get('reason'))}", ""


def _level(event: TelemetryEvent, score: Score) -> Iterator[Piece]:
    suppressed = event.data.get("suppressed", ())
    if suppressed:
        yield f"telemetry level {_known(event.data.get('level'))}", "dim"
        yield f": {len(suppressed)} kinds of event are not recorded", "dim"


_WRITERS: Final[dict[T, Callable[[TelemetryEvent, Score], Iterator[Piece]]]] = {
    T.TRAINING_STARTED: _started,
    T.TRAINING_ENDED: _ended,
    T.EPISODE_ENDED: _episode_ended,
    T.SEED_GERMINATED: _germinated,
    T.SEED_STAGE_CHANGED: _moved,
    T.SEED_GATE_EVALUATED: _gate,
    T.SEED_FOSSILIZED: _fossilized,
    T.SEED_PRUNED: _pruned,
    T.SLOT_REOPENED: _reopened,
    T.TRANSITION_VETOED: _vetoed,
    T.ISOLATION_VIOLATION: _violated,
    T.GOVERNOR_PANIC: _panic,
    T.GOVERNOR_ROLLBACK: _rollback,
    T.COMMAND_FAILED: _command_failed,
    T.CHECKPOINT_SAVED: _checkpoint,
    T.CHECKPOINT_LOADED: _checkpoint,
    T.WORKER_REPLACED: _replaced,
    T.MODEL_EXPORTED: _exported,
    T.TELEMETRY_DROPPED: _dropped,
    T.TELEMETRY_LEVEL_SET: _level,
}
