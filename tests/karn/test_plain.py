from __future__ import annotations

from hypothesis import given, settings

from esper.karn.aggregator import fold
from esper.karn.filter import parse
from esper.karn.plain import body_words, render
from esper.karn.schema import Damage, HostVitals
from esper.karn.snapshot import build
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.streams import START, Recorder, begin, begin_episode, epoch_done, runs, story


@given(runs())
@settings(max_examples=10)
def test_any_run_renders_as_printable_lines(events: list[TelemetryEvent]) -> None:
    text = render(build(fold(events), START + 100))
    assert text.endswith("\n") and "\x1b" not in text


def test_says_what_matters() -> None:
    text = render(build(fold(story()), START + 41))
    for part in (
        "ESPER  digits · heuristic",
        "STATE      completed after 12 s",
        "done   24 of 24 epochs",
        "! panic: 1 governor panic in the last 5 epochs (weight 0.6)",
        "blocks_1: conv3 fossilized, alpha 1, G5 passed",
        "conv3: 1 germinated, 1 kept, 0 pruned, 2 failed gates",
        "1. grown seed 100: test 95",
    ):
        assert part in text, part
    assert text.index("env 1 grown") < text.index("env 0 grown")


def test_unknown_nan_zero_and_stale_read_differently() -> None:
    rec = Recorder()
    begin(rec)
    for env, known in enumerate(({}, {"validation_loss": float("nan")}, {"validation_loss": 0.0})):
        begin_episode(rec, env)
        epoch_done(rec, env, 1, None, **known)
    epoch_done(rec, 2, 6, None)
    text = render(build(fold(rec.events), START + 4))
    assert "loss –" in text and "loss NaN" in text and "loss 0 (stale, 5 epochs old)" in text


def test_filter_hides_and_says_so() -> None:
    text = render(build(fold(story()), START), parse("env=1"))
    assert "1 shown, outliers first, 1 hidden by the filter" in text and "env 0 grown" not in text


def test_drops_and_damage_are_shown() -> None:
    rec = Recorder()
    begin(rec)
    rec.say(T.TELEMETRY_DROPPED, sink="journal", event_type="ANALYTICS_SNAPSHOT", count=7, reason="queue_full")
    text = render(build(fold(rec.events), START, [Damage(kind="torn", text="3 bytes not committed")]))
    assert "JOURNAL TORN  3 bytes" in text and "DROPPED  7 ANALYTICS_SNAPSHOT by journal (queue_full)" in text


def test_vitals_that_could_not_be_read_are_unknown() -> None:
    host = HostVitals(time=0.0, cpu_share=0.0, memory_available=2_500_000_000)
    assert body_words(host, "cpu") == (
        "CPU 0% of all cores · run unknown cores and unknown · memory left 2.5 GB · I/O wait unknown"
    )
    assert body_words(host, "cuda:0").endswith("GPU unknown busy, its memory unknown of unknown")
    known = HostVitals(time=0.0, gpu_share=0.5, gpu_memory=1_000_000_000, gpu_memory_total=8_000_000_000)
    assert body_words(known, "cuda:0").endswith("GPU 50% busy, its memory 1.0 GB of 8.0 GB")
