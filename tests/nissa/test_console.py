from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.live import Live

from esper.leyline import REGISTRY, TelemetryEvent, TelemetryEventType
from esper.nissa.console import ConsoleSink

T = TelemetryEventType
METRIC = {"name": "accuracy", "unit": "%", "higher_is_better": True}
STARTED = TelemetryEvent(
    event_type=T.TRAINING_STARTED,
    data={"run_id": "r-1", "task": "digits", "policy": "heuristic", "episodes": 2, "max_epochs": 9, "metric": METRIC},
)


class Stream(io.StringIO):
    """A text stream that can pass for a terminal and has an encoding."""

    def __init__(self, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


def shown(*events: TelemetryEvent, quiet: bool = False, stream: Stream | None = None) -> str:
    stream = stream or Stream()
    sink = ConsoleSink(quiet, file=stream)
    for event in events:
        sink(event)
    sink.close()
    return stream.getvalue()


def gate(failed: list[str], **data: object) -> TelemetryEvent:
    content = {"gate": "G2", "passed": not failed, "target_stage": "BLENDING", "checks_failed": failed, **data}
    return TelemetryEvent(event_type=T.SEED_GATE_EVALUATED, episode=1, epoch=4, slot_id="layer1", data=content)


def epoch(number: int, **data: object) -> TelemetryEvent:
    content = {"validation_loss": 0.5, "alphas": {"a": 0.5}, "stages": {"a": "BLENDING", "b": "DORMANT"}, **data}
    return TelemetryEvent(event_type=T.EPOCH_COMPLETED, epoch=number, t_mono=float(number), data=content)


@pytest.fixture(autouse=True)
def no_settings_of_the_outer_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_log_file_gets_plain_lines() -> None:
    checks = [
        {"id": "probe_gain", "comparison": ">", "threshold": 0.0, "passed": False},
        {"id": "gradient_ratio", "measured": 0.021, "comparison": ">=", "threshold": 0.05, "passed": False},
        {"id": "violations", "measured": 0, "comparison": "<=", "threshold": 0, "passed": True},
    ]
    text = shown(STARTED, gate(["probe_gain_not_measured", "gradient_ratio=0.021"], checks=checks))
    assert text.splitlines() == [
        "run r-1  digits · heuristic policy · 2 episodes × 9 epochs · ?",
        "ep 1 · epoch 4 · layer1  ✗ G2 blocks BLENDING: probe_gain was not measured (needs > 0); "
        "gradient_ratio is 0.021, needs >= 0.05",
    ]


def test_a_gate_is_repeated_only_when_the_reason_changes() -> None:
    text = shown(gate(["a=1"]), gate(["a=2"]), gate(["a=1", "b=1"]), gate([]), gate(["a=1"]))
    assert [line.partition(": ")[2] for line in text.splitlines()] == ["a=1", "a=1; b=1", "a=1"]


def test_a_life_of_a_seed_reads_as_a_story() -> None:
    health = {"blueprint": "conv3", "parameters": 120}

    def event(kind: T, **data: object) -> TelemetryEvent:
        return TelemetryEvent(event_type=kind, slot_id="s", seed_id="s-1", data={**health, **data})

    text = shown(
        STARTED,
        event(T.SEED_GERMINATED),
        event(T.SEED_STAGE_CHANGED, **{"from": "DORMANT", "to": "GERMINATED"}),
        event(T.SEED_STAGE_CHANGED, **{"from": "TRAINING", "to": "BLENDING"}),
        event(T.SEED_FOSSILIZED, removal_cost=2.5),
        event(T.SEED_PRUNED, by="policy", reason="no gain"),
        event(T.GOVERNOR_ROLLBACK, to_epoch=3, reason="divergence", cause="internal", suspect="s-1", vetoed_epochs=5),
        TelemetryEvent(
            event_type=T.EPISODE_ENDED,
            data={
                "arm": "grown",
                "status": "completed",
                "validation_metric": 91.256,
                "test_metric": 90.0,
                "seeds": [{"stage": "FOSSILIZED"}, {"stage": "PRUNED"}],
                "total_parameters": 1234,
            },
        ),
        TelemetryEvent(event_type=T.TRAINING_ENDED, data={"status": "completed", "seconds": 12.5}),
    )
    assert text.splitlines()[1:] == [
        "s  germinated conv3 (s-1) · 120 parameters",
        "s  TRAINING → BLENDING",
        "s  ✓ fossilized conv3 · without it 2.50 % worse",
        "s  pruned conv3 by policy: no gain",
        "s  rolled back to epoch 3: divergence · cause internal · s-1 vetoed for 5 epochs",
        "episode ended (grown, completed)  validation 91.26 % · test 90.00 % · 2 seeds kept · 1234 parameters",
        "run completed  12.5 s",
    ]


def test_progress_is_one_line_on_a_terminal_and_now_and_then_elsewhere() -> None:
    events = [STARTED, *(epoch(number, validation_metric=90.0 + number) for number in range(1, 13))]
    lines = shown(*events).splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 11"]
    assert lines[0] == "epoch 1  loss 0.5  accuracy 91.00 %  a blending 0.5"
    terminal = shown(*events, stream=Stream(terminal=True))
    assert terminal.count("\r\x1b[2K") == 12 and terminal.count("\n") == 1


def test_what_was_not_measured_is_called_so_and_nan_is_nan() -> None:
    text = shown(STARTED, epoch(1, validation_loss=math.nan, alphas={}))
    assert "loss nan  accuracy not measured" in text and "a blending not measured" in text


def test_quiet_leaves_warnings_and_errors() -> None:
    warning = TelemetryEvent(event_type=T.CHECKPOINT_LOADED, severity="warning", data={"path": "p", "exact": False})
    odd = TelemetryEvent(event_type=T.COMPUTE_SPENT, severity="error", message="odd")
    text = shown(STARTED, epoch(1), gate(["a"]), warning, odd, quiet=True)
    assert [line.split()[0] for line in text.splitlines()] == ["checkpoint", "COMPUTE_SPENT"]


def test_text_is_never_markup_nor_control() -> None:
    event = TelemetryEvent(
        event_type=T.SEED_PRUNED, slot_id="[red]x[/red]", data={"reason": "\x1b[31m[bold]\nboo :smile:", "by": "[/]"}
    )
    for stream in (Stream(), Stream(terminal=True)):
        text = shown(event, stream=stream)
        assert "[red]x[/red]" in text and "\\x1b[31m[bold]\\x0aboo :smile:" in text and text.count("\n") == 1


def test_a_stream_without_unicode_gets_ascii() -> None:
    text = shown(
        STARTED, gate(["a"]), TelemetryEvent(event_type=T.SEED_PRUNED, slot_id="é"), stream=Stream(encoding="ascii")
    )
    assert text.isascii() and "x G2 blocks" in text and "\\xe9" in text


@pytest.mark.parametrize("kind", T)
def test_every_event_can_be_shown_with_nothing_in_it(kind: T) -> None:
    for severity in ("info", "error"):
        for terminal in (False, True):
            shown(TelemetryEvent(event_type=kind, severity=severity), stream=Stream(terminal))  # type: ignore[arg-type]
    assert kind in REGISTRY


def test_a_reader_that_has_gone_is_an_error_of_this_sink_not_the_end_of_the_run() -> None:
    class Gone(Stream):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError, match="reader of the output has gone"):
        ConsoleSink(file=Gone())(STARTED)


def test_an_alarm_beside_a_live_display_stands_in_a_line_of_its_own() -> None:
    stream = Stream(terminal=True)
    console = Console(file=stream, force_terminal=True, width=100, highlight=False)
    with Live("ep 0 ━━━━━━ 3/10 epochs left 0:00:09", console=console, auto_refresh=False, transient=True) as live:
        live.refresh()
        warning = TelemetryEvent(event_type=T.COMPUTE_SPENT, severity="warning", message="odd")
        ConsoleSink(quiet=True, console=console)(warning)
    (line,) = [line for line in stream.getvalue().splitlines() if "COMPUTE_SPENT" in line]
    assert line.rpartition("\x1b[2K")[2].startswith("\x1b[33mCOMPUTE_SPENT")
