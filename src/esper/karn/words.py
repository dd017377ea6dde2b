"""Events, gates and figures in words, the same in every face. Text only: no markup of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from esper.leyline import SEVERITIES, Severity, TelemetryEvent
from esper.leyline import TelemetryEventType as T

GLYPHS = {
    "DORMANT": "·",
    "GERMINATED": "○",
    "TRAINING": "◔",
    "BLENDING": "◑",
    "HOLDING": "◕",
    "FOSSILIZED": "●",
    "PRUNED": "✕",
    "EMBARGOED": "▨",
    "RESETTING": "▧",
}
"""Stage -> glyph; a slot of which nothing is known yet has ``?``."""

DAY: Final = 86_400
"""Seconds."""

ABSENT = "–"
"""What stands for a value that was not measured; never a zero."""


def figure(value: Any) -> str:
    """A value as a person reads it; NaN and infinities by name, so that they cannot pass for numbers."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "∞" if value > 0 else "-∞"
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3g}"
    return {"NaN": "NaN", "Infinity": "∞", "-Infinity": "-∞"}.get(str(value), str(value))


def rounded(value: float, half: float) -> str:
    """``value`` to the digits that an interval of that half width leaves meaning to: two of the width's."""
    if not math.isfinite(value) or not math.isfinite(half) or half <= 0:
        return figure(float(value))
    return f"{value:,.{min(6, max(0, 1 - math.floor(math.log10(half))))}f}"


def duration(seconds: float) -> str:
    """``41 s``, ``3 min 5 s``, ``2 h 10 min``, ``415 d 15 h``."""
    if not -1e11 < seconds < 1e11:  # nor NaN
        return f"{figure(seconds)} s"
    whole = int(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 2 * DAY:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // DAY:,} d {whole % DAY // 3600} h"


def size(count: float) -> str:
    """Bytes: ``512 B``, ``1.5 kB``, ``3.42 GB``, in powers of 1000."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            value = count / 1000**power
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{count:.0f} B"


def moment(time: float) -> str:
    """A wall-clock time as it can be compared across machines: ``2026-11-29 11:41:37Z``."""
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (OverflowError, OSError, ValueError):
        return figure(time)


def count(number: int, what: str) -> str:
    """``1 seed``, ``1,200 seeds``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def cut(text: str, most: int) -> str:
    """``text`` in ``most`` characters, with an ellipsis for what had no room."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def asked(evaluations: int, failures: int) -> str:
    """How often a gate was asked, where it was more than once: ``asked 3 times, refused 2 of them``."""
    return "" if evaluations <= 1 else f"asked {evaluations} times, refused {failures} of them"


def severity(event: TelemetryEvent) -> Severity:
    """How much an event matters to a person: an end that is no success is more than it says of itself."""
    if event.event_type in _ENDING:
        least = _ENDS.get(str(event.data.get("status")), "info")
        return max(event.severity, least, key=SEVERITIES.index)
    return event.severity


_ENDING: Final = frozenset({T.TRAINING_ENDED, T.EPISODE_ENDED})
_ENDS: dict[str, Severity] = {"failed": "error", "interrupted": "warning", "preempted": "warning"}


def check(record: Mapping[str, Any]) -> str:
    """One check of a gate: ``removal cost 0.42 points, needs >= 0.5``."""
    name, unit = str(record.get("id")).replace("_", " "), f" {record['unit']}" if record.get("unit") else ""
    comparison = "to be" if record.get("comparison") == "is" else record.get("comparison")
    needs = f"{comparison} {figure(record.get('threshold'))}"
    measured, least = record.get("measured"), record.get("threshold")
    if measured is None:
        return f"{name} was not measured, needs {needs}"
    if waits(record) and isinstance(measured, int | float) and isinstance(least, int | float) and measured < least:
        return f"{figure(measured)} of {figure(least)} epochs in {name.removesuffix(' epochs')}"
    if name.endswith(unit or " "):
        unit = ""
    return f"{name} {figure(record['measured'])}{unit}, needs {needs}"


def waits(record: Mapping[str, Any]) -> bool:
    """Whether a check only counts epochs, so that it is a matter of time: no sign of anything wrong."""
    return record.get("unit") == "epochs" and record.get("comparison") == ">=" and str(record["id"]).endswith("_epochs")


def deciding(checks: Iterable[Mapping[str, Any]], passed: bool, ids: Iterable[str]) -> str:
    """The checks that decided a gate: the failed ones, or all that passed; their ids where there is nothing more."""
    told = [check(record) for record in checks if bool(record.get("passed")) is passed]
    return "; ".join(told or map(str, ids))


_NUMBERS: Final = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_DOING: Final = {
    "GERMINATED": "born",
    "TRAINING": "learning",
    "BLENDING": "blending in",
    "HOLDING": "holding",
    "PRUNED": "pruned",
    "EMBARGOED": "pruned",
    "RESETTING": "pruned",
}


def generations(kept: int, stage: str | None) -> str | None:
    """``2 kept, third learning``: a slot that opened again above ``kept`` seeds. ``None`` where it never did."""
    if not kept:
        return None
    if stage == "FOSSILIZED":
        return f"{kept + 1} kept"
    number = _NUMBERS[kept] if kept < len(_NUMBERS) else f"{kept + 1}th"
    doing = _DOING.get(stage or "")
    return f"{kept} kept, {number} {doing}" if doing else f"{kept} kept, open for a {number}"


def dated(text: str, epoch: int | None) -> str:
    """A sentence with the epoch that it is of."""
    return f"{text} (epoch {epoch})" if epoch is not None else f"{text} (at an unknown time)"


def describe(event: TelemetryEvent) -> str:
    """One event as one sentence, with its own message where it has one and nothing better is known."""
    template = _SENTENCES.get(event.event_type)
    text = template(event.data) if template is not None else ""
    return text or event.message or event.event_type.value.lower().replace("_", " ")


def _gate(data: Mapping[str, Any]) -> str:
    verdict = "passed" if data.get("passed") else "failed"
    reasons = "" if data.get("passed") else deciding(data.get("checks", ()), False, data.get("checks_failed", ()))
    because = f": {reasons}" if reasons else ""
    return f"{data.get('gate')} {verdict} for {data.get('target_stage')}{because}"


def _moved(data: Mapping[str, Any]) -> str:
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"{data.get('from')} to {data.get('to')}{reason}"


def _command(verb: str, data: Mapping[str, Any]) -> str:
    blueprint = f" {data['blueprint']}" if data.get("blueprint") else ""
    why = data.get("why_not") or data.get("reason")
    return f"{verb} {data.get('op')}{blueprint}" + (f": {why}" if why else "")


def _kept(data: Mapping[str, Any]) -> str:
    cost = data.get("removal_cost")
    worth = f", worth {figure(cost)} {data.get('unit', '')}".rstrip() if cost is not None else ""
    return f"kept for good{worth}"


def _episode_end(data: Mapping[str, Any]) -> str:
    test = f", test {figure(data['test_metric'])}" if data.get("test_metric") is not None else ""
    best = f", delivered as it was in epoch {data.get('delivered_epoch')}" if data.get("delivered") == "best" else ""
    return f"episode {data.get('status')}{test}{best}"


def _exported(data: Mapping[str, Any]) -> str:
    inside = folded(len(data.get("folded", ())))
    return f"model written to {data.get('path')}" + (f", {inside}" if inside else "")


def folded(seeds: int) -> str:
    """What became of seeds that are in a weight of the written model; empty where none is."""
    return f"{seeds} seed{'s' * (seeds != 1)} folded into weights" if seeds else ""


def end_reason(reason: object) -> str:
    """Why a run ended, without the name of our own error class: its text says what is wrong."""
    return str(reason or "").removeprefix("EsperError: ")


def _reason(data: Mapping[str, Any]) -> str:
    """A reason that is an identifier, as words."""
    return str(data.get("reason", "no reason given")).replace("_", " ")


def _promises(data: Mapping[str, Any]) -> str:
    """The three most promising places, with what they would take off the loss."""
    values, kinds = data.get("promises") or {}, data.get("blueprints") or {}
    best = sorted(values, key=values.__getitem__, reverse=True)[:3]
    said = ", ".join(f"{kinds.get(slot)} in {slot} {figure(values[slot])}" for slot in best)
    return f"what {len(values)} places promise to take off the loss ({data.get('steps')} steps): {said}"


def _panic(data: Mapping[str, Any]) -> str:
    against = f" (limit {figure(data['threshold'])})" if data.get("threshold") is not None else ""
    measured = f": {figure(data['measured'])}" if data.get("measured") is not None else ""
    return f"panic, {_reason(data)}{measured}{against}"


_SENTENCES: dict[T, Callable[[Mapping[str, Any]], str]] = {
    T.SEED_GERMINATED: lambda d: f"{d.get('blueprint')} germinated ({figure(d.get('parameters'))} parameters)",
    T.SEED_GATE_EVALUATED: _gate,
    T.SEED_STAGE_CHANGED: _moved,
    T.SEED_ALPHA_RETARGETED: lambda d: (
        f"alpha {figure(d.get('alpha_from'))} to {figure(d.get('alpha_target'))} over {d.get('tempo')} epochs"
    ),
    T.SEED_FOSSILIZED: _kept,
    T.SLOT_REOPENED: lambda d: f"open again, {d.get('generation')} of {d.get('generations')} kept",
    T.SEED_PRUNED: lambda d: f"pruned from {d.get('from')} by {d.get('by', 'an unnamed hand')}: {_reason(d)}",
    T.TRANSITION_VETOED: lambda d: f"{d.get('target_stage')} vetoed by {d.get('by')}: {_reason(d)}",
    T.ISOLATION_VIOLATION: lambda d: f"gradient leaked to the host ({figure(d.get('host_gradient_norm'))})",
    T.TRAINING_STARTED: lambda d: f"{d.get('kind')} run of {d.get('task')} with policy {d.get('policy')}",
    T.TRAINING_ENDED: lambda d: f"run {d.get('status')}" + (f": {end_reason(d['reason'])}" if d.get("reason") else ""),
    T.EPISODE_STARTED: lambda d: f"episode of the {d.get('arm')} host begins, seed {d.get('seed')}",
    T.EPISODE_ENDED: _episode_end,
    T.EPOCH_COMPLETED: lambda d: (
        f"metric {figure(d.get('validation_metric'))}, loss {figure(d.get('validation_loss'))}"
    ),
    T.COMMAND_ISSUED: lambda d: _command("asks for", d),
    T.COMMAND_EXECUTED: lambda d: _command("did", d),
    T.COMMAND_FAILED: lambda d: _command("could not", d),
    T.MODEL_EXPORTED: _exported,
    T.COUNTERFACTUAL_COMPUTED: lambda d: (
        f"removal cost {figure(d.get('removal_cost'))}, "
        f"probe gain {figure(d.get('probe_gain'))} {d.get('unit', '')}".rstrip()
    ),
    T.COUNTERFACTUAL_UNAVAILABLE: lambda d: f"no counterfactual: {_reason(d)}",
    T.PROMISES_MEASURED: _promises,
    T.ANALYTICS_SNAPSHOT: lambda d: str(d.get("kind", "")).replace("_", " "),
    T.COMPUTE_SPENT: lambda d: f"{figure(d.get('total_macs'))} MACs so far",
    T.PPO_UPDATE_COMPLETED: lambda d: (
        f"update {d.get('round')}: KL {figure(d.get('kl'))}, return {figure(d.get('mean_episode_return'))}"
    ),
    T.REWARD_COMPUTED: lambda d: f"reward {figure(d.get('total'))}",
    T.GOVERNOR_SNAPSHOT: lambda d: f"epoch {d.get('of_epoch')} kept as last known good",
    T.GOVERNOR_PANIC: _panic,
    T.GOVERNOR_ROLLBACK: lambda d: f"rolled back to epoch {d.get('to_epoch')} ({d.get('cause')} cause)",
    T.CHECKPOINT_SAVED: lambda d: f"checkpoint at step {d.get('step')} saved ({d.get('reason')})",
    T.CHECKPOINT_LOADED: lambda d: (
        f"checkpoint at step {d.get('step')} loaded, " + ("exact" if d.get("exact") else "not exact")
    ),
    T.WORKER_REPLACED: lambda d: (
        f"worker {d.get('worker')} ({d.get('where')}) was lost: {d.get('reason')}; "
        f"another repeats {d.get('epochs_repeated')} epochs"
    ),
    T.RANKS_DIFFER: lambda d: (
        f"rank {', '.join(map(str, d.get('ranks', ())))} and rank 0 have drifted apart, in {d.get('what')}"
    ),
    T.TELEMETRY_DROPPED: lambda d: (
        f"{figure(d.get('count'))} {d.get('event_type')} dropped"
        + ("" if d.get("sink") == "*" else f" by {d.get('sink')}")
        + f" ({_reason(d)})"
    ),
    T.TELEMETRY_LEVEL_SET: lambda d: (
        f"telemetry level {d.get('level')}" + (", lifecycle only" if d.get("lifecycle_only") else "")
    ),
}
