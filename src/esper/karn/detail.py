"""The drawer of one environment and the inspector of its seeds."""

from __future__ import annotations

from typing import Any

from esper.karn import words
from esper.karn.parts import Curve, number, wire_safe
from esper.karn.results import left_out
from esper.karn.schema import Check, EnvironmentDetail, Gate, Seed, Slot
from esper.karn.series import Series
from esper.karn.snapshot import Builder, environment_row, figure, in_order, stale_factor
from esper.karn.state import EnvironmentFold, Facts, RunState, SeedFold, SlotFold, view
from esper.karn.words import dated
from esper.leyline import unknown


def build_detail(state: RunState, env_id: int, now: float, builder: Builder | None = None) -> EnvironmentDetail:
    """All that is known of one environment at wall clock ``now``. Raises ``UsageError`` when there is no such one.

    In a series, ``builder`` keeps the picture of an environment that said nothing since the last one.
    """
    fold = state.environments.get(env_id)
    if fold is None:
        raise unknown("environment", str(env_id), map(str, state.environments))
    return view(
        EnvironmentDetail,
        fold,
        row=environment_row(fold, stale_factor(state, fold, now), state.run.slots),
        metric=curve(fold.metric),
        loss=curve(fold.loss),
        facts=_figures(fold.facts, fold.epoch),
        slots={name: _slot(fold.slots[name], fold) for name in in_order(fold.slots, state.run.slots)},
        compute=_figures(fold.compute, fold.epoch),
        diagnostics=wire_safe(fold.diagnostics),
        network=(builder or Builder()).picture(state, fold),
    )


def curve(series: Series) -> Curve:
    """A bounded history for a chart, with how many points stand behind it."""
    buckets = series.buckets
    return Curve(
        at=[bucket.last_at for bucket in buckets],
        low=[number(bucket.low) for bucket in buckets],
        high=[number(bucket.high) for bucket in buckets],
        last=[number(bucket.last) for bucket in buckets],
        nans=[bucket.nans for bucket in buckets],
        seen=series.seen,
    )


def _figures(facts: Facts, epoch: int | None) -> dict[str, Any]:
    return {name: figure(measured, epoch) for name, measured in sorted(facts.items())}


def _slot(slot: SlotFold, fold: EnvironmentFold) -> Slot:
    seed = slot.seed
    if seed is None:
        live = None
    else:
        live = _seed(seed, fold, stage=slot.stage, blocked=_blocked(seed) if seed.stage is None else None)
    return view(
        Slot,
        slot,
        seed=live,
        kept=[_seed(seed, fold) for seed in slot.kept],
        generations=words.generations(len(slot.kept), slot.stage),
        past=[_seed(seed, fold) for seed in slot.past],
    )


def _seed(seed: SeedFold, fold: EnvironmentFold, **live: str | None) -> Seed:
    return view(
        Seed,
        seed,
        **live,
        facts=_figures(seed.facts, fold.epoch),
        gates=[view(Gate, gate, checks=list(map(_check, gate.checks))) for _, gate in sorted(seed.gates.items())],
        ended=_ended(seed),
        left_out=left_out(fold.result, seed.seed) if seed.stage == "FOSSILIZED" else None,
        alpha=curve(seed.alpha) if seed.alpha.seen else None,
        contribution=curve(seed.contribution) if seed.contribution.seen else None,
    )


def _check(record: dict[str, Any]) -> Check:
    return Check(
        id=str(record.get("id", "")),
        passed=bool(record.get("passed")),
        text=words.check(record),
        comparison=str(record.get("comparison", "")),
        threshold=wire_safe(record.get("threshold", "")),
        measured=wire_safe(record.get("measured")),
        unit=record.get("unit"),
    )


def _blocked(seed: SeedFold) -> str | None:
    """What the newest gate evaluation says against moving on."""
    if not seed.gates:
        return None
    newest = max(seed.gates.values(), key=lambda gate: (gate.epoch is not None, gate.epoch or 0, gate.gate))
    if newest.passed:
        return None
    reasons = words.deciding(newest.checks, False, newest.deciding)
    return dated(f"{newest.gate} keeps it from {newest.target}: {reasons}", newest.epoch)


def _ended(seed: SeedFold) -> str | None:
    if seed.stage is None:
        return None
    if seed.stage == "FOSSILIZED":
        cost = seed.end_cost
        worth = f", worth {dated(words.figure(cost.value), cost.epoch)}" if cost is not None else ""
        return f"{dated('kept for good', seed.end_epoch)}{worth}"
    by = f" by {seed.end_by}" if seed.end_by else ""
    return dated(f"pruned{by}: {seed.end_reason or 'no reason given'}", seed.end_epoch)
