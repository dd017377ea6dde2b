"""``/metrics`` in OpenMetrics text: figures of the newest snapshot for Prometheus and its kin.

A value that was not measured has no line; NaN and infinities are spelled as the format spells them.
"""

from __future__ import annotations

from collections.abc import Iterator

from esper.karn.parts import Figure
from esper.karn.schema import Snapshot
from esper.leyline import visible

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ROWS = {
    "metric": "validation metric of the environment, in the task's unit",
    "loss": "validation loss of the environment",
    "parameters": "parameters of host and seeds",
    "step_ms": "milliseconds of the last epoch",
}


def openmetrics(snapshot: Snapshot) -> str:
    """The whole exposition, ended as the format asks."""
    return "\n".join([*_lines(snapshot), "# EOF"]) + "\n"


def _lines(snapshot: Snapshot) -> Iterator[str]:
    run, rows = snapshot.run, snapshot.environments.values()
    yield from _family("esper_events", "counter", "events committed")
    yield f"esper_events_total {snapshot.clock.events}"
    yield from _family("esper_epochs", "counter", "epochs completed, over all environments")
    yield f"esper_epochs_total {run.progress.epochs_done}"
    yield from _family("esper_dropped_events", "counter", "events that a sink lost")
    yield f"esper_dropped_events_total {sum(drop.count for drop in snapshot.drops)}"
    yield from _family("esper_run_ended", "gauge", "1 after an end event")
    yield f"esper_run_ended {int(run.state == 'ended')}"
    if snapshot.clock.silent_for is not None:
        yield from _family("esper_silent_seconds", "gauge", "seconds since the newest event")
        yield f"esper_silent_seconds {snapshot.clock.silent_for!r}"
    yield from _family("esper_anomaly_score", "gauge", "anomaly score of the environment")
    for row in rows:
        yield f'esper_anomaly_score{{env="{row.env}"}} {row.score!r}'
    for name, text in _ROWS.items():
        yield from _family(f"esper_{name}", "gauge", text)
        for row in rows:
            figure = getattr(row, name)
            if figure is not None:
                yield f'esper_{name}{{env="{row.env}"}} {_number(figure)}'
    yield from _family("esper_slots", "gauge", "slots by stage, over all environments")
    for stage, count in snapshot.stages.items():
        yield f'esper_slots{{stage="{_label(stage)}"}} {count}'


def _family(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"# HELP {name} {text}"


def _label(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace('"', '\\"')


def _number(figure: Figure) -> str:
    spelled = {"NaN": "NaN", "Infinity": "+Inf", "-Infinity": "-Inf"}
    return spelled.get(str(figure.value), repr(figure.value))
