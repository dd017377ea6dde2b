"""The environment drawer and the seed inspector in plain text, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esper.karn.parts import Curve
from esper.karn.plain import shown
from esper.karn.schema import Action, EnvironmentDetail, Seed, Slot
from esper.karn.words import GLYPHS, asked
from esper.karn.words import figure as number
from esper.leyline import visible

_BARS = "▁▂▃▄▅▆▇█"


def drawer_text(detail: EnvironmentDetail, unit: str = "") -> str:
    """Everything known of one environment, the worst first."""
    return "\n".join(map(visible, _lines(detail, unit)))


def sparkline(curve: Curve) -> str:
    """A history in one line of bars; ``x`` marks a bucket that holds a NaN or an infinity."""
    numbers = [value for value in curve.last if isinstance(value, int | float)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
    span = (high - low) or 1.0
    return "".join(
        "x" if not isinstance(value, int | float) or nans else _BARS[int((value - low) / span * (len(_BARS) - 1))]
        for value, nans in zip(curve.last, curve.nans, strict=True)
    )


def _lines(detail: EnvironmentDetail, unit: str) -> Iterator[str]:
    row = detail.row
    yield f"ENVIRONMENT {row.env}  {row.level}, score {row.score:.2f}, {row.status}"
    for factor in row.factors:
        yield f"  ! {factor.text}"
        yield f"    measured {number(factor.measured)}, threshold {factor.threshold:g}, weight {factor.weight:g}"
    if detail.non_finite:
        yield f"  not finite in the last epoch: {', '.join(detail.non_finite)}"
    yield f"  metric {shown(row.metric, unit, row.epoch)}  best {shown(row.best, unit)}"
    if detail.metric.seen:
        yield f"  {sparkline(detail.metric)}  {len(detail.metric.at)} buckets of {detail.metric.seen} points"
    if detail.rollbacks:
        yield f"  rolled back {detail.rollbacks} times"
    for slot in detail.slots.values():
        yield ""
        yield from _slot(slot, row.epoch)
    yield ""
    yield f"ACTIONS  last {len(detail.actions)} of {detail.actions_seen}"
    for action in reversed(detail.actions[-12:]):
        yield f"  {_action(action)}"
    for title, facts in (("MEASURED", detail.facts), ("COMPUTE", detail.compute)):
        if facts:
            yield ""
            yield title
            for name, value in facts.items():
                yield f"  {name.replace('_', ' ')}: {shown(value, '', row.epoch)}"


def _slot(slot: Slot, epoch: Any) -> Iterator[str]:
    stage = slot.stage if slot.stage is not None else "unknown"
    seeds = "1 seed" if slot.seeds_seen == 1 else f"{slot.seeds_seen} seeds"
    standing = f"; {slot.generations}" if slot.generations is not None else ""
    yield f"SLOT {slot.slot}  {GLYPHS.get(str(stage), '?')} {str(stage).lower()}, {seeds} so far{standing}"
    if slot.swimlane:
        spans = (f"{GLYPHS.get(s.stage, '?')} {s.since}-{'' if s.until is None else s.until}" for s in slot.swimlane)
        yield f"  life by epoch: {'  '.join(spans)}"
    if slot.seed is not None:
        yield from _seed(slot.seed, epoch)
    for seed in reversed(slot.kept):
        yield f"  beneath: {seed.blueprint if seed.blueprint is not None else seed.seed}, {_or(seed.ended, 'kept')}"
    for seed in slot.past:
        yield f"  before: {seed.blueprint if seed.blueprint is not None else seed.seed}, {_or(seed.ended, 'gone')}"


def _seed(seed: Seed, epoch: Any) -> Iterator[str]:
    blueprint, parameters = _or(seed.blueprint, "unknown blueprint"), number(_or(seed.parameters, None))
    yield f"  seed {seed.seed}: {blueprint}, {parameters} parameters"
    for label, text in (
        ("BLOCKED", seed.blocked),
        ("vetoed", seed.veto),
        ("no counterfactual", seed.unavailable),
        ("ended", seed.ended),
        ("LEFT OUT", seed.left_out),
    ):
        if text is not None:
            yield f"    {label}: {text}"
    for gate in seed.gates:
        often = asked(gate.evaluations, gate.failures)
        yield f"    {gate.gate} {'passed' if gate.passed else 'FAILED'}" + (f"; {often}" if often else "")
        for check in gate.checks:
            yield f"      {'ok  ' if check.passed else 'FAIL'} {check.text}"
    for name, value in seed.facts.items():
        yield f"    {name.replace('_', ' ')}: {shown(value, '', epoch)}"
    if seed.contribution is not None:
        yield f"    contribution {sparkline(seed.contribution)}"


def _action(action: Action) -> str:
    epoch = f"epoch {action.epoch}: " if action.epoch is not None else ""
    what = " ".join(
        f"{label}{number(part) if isinstance(part, float) else part}"
        for label, part in (
            ("", action.op),
            ("", action.slot),
            ("", action.blueprint),
            ("", action.blend),
            ("alpha ", action.alpha_target),
            ("tempo ", action.tempo),
        )
        if part is not None
    )
    why = _or(action.why_not, _or(action.reason, ""))
    narrowed = f", masks narrowed {', '.join(action.masked)}" if action.masked else ""
    return f"{epoch}{what} {action.outcome}" + (f" ({why})" if why else "") + narrowed


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
