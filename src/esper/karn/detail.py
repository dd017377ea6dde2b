"""The drawer of one environment and the inspector of its seeds."""

from __future__ import annotations

from typing import Any

from esper.karn import words
from esper.karn.schema import (
    Action,
    Check,
    Curve,
    EnvironmentDetail,
    Gate,
    Seed,
    Slot,
    Stretch,
    number,
    wire_safe,
)
from esper.karn.series import Series
from esper.karn.snapshot import environment_row, figure, in_order, stale_factor
from esper.karn.state import ActionRecord, EnvironmentFold, Facts, GateRecord, RunState, SeedFold, SlotFold
from esper.leyline import HEADS, RELEVANT_HEADS, unknown

_RELEVANT = {op.name: frozenset(heads) for op, heads in RELEVANT_HEADS.items()}


def build_detail(state: RunState, env_id: int, now: float) -> EnvironmentDetail:
    """All that is known of one environment at wall clock ``now``. Raises ``UsageError`` when there is no such one."""
    fold = state.environments.get(env_id)
    if fold is None:
        raise unknown("environment", str(env_id), map(str, state.environments))
    return EnvironmentDetail(
        row=environment_row(fold, stale_factor(state, fold, now), state.run.slots),
        metric=curve(fold.metric),
        loss=curve(fold.loss),
        facts=_figures(fold.facts, fold.epoch),
        slots={name: _slot(fold.slots[name], fold) for name in in_order(fold.slots, state.run.slots)},
        actions=[_action(record) for record in fold.actions],
        actions_seen=fold.actions_seen,
        compute=_figures(fold.compute, fold.epoch),
        non_finite=list(fold.non_finite),
        rollbacks=fold.rollbacks,
        diagnostics=wire_safe(fold.diagnostics),
        diagnostics_epoch=fold.diagnostics_epoch,
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
    return Slot(
        slot=slot.slot_id,
        stage=slot.stage,
        seed=None if slot.seed is None else seed_view(slot.seed, slot, fold.epoch, live=True),
        past=[seed_view(seed, slot, fold.epoch, live=False) for seed in slot.past],
        seeds_seen=slot.seeds_seen,
        swimlane=[
            Stretch(stage=span.stage, since=span.since, until=span.until, seed=span.seed_id) for span in slot.spans
        ],
    )


def seed_view(seed: SeedFold, slot: SlotFold, epoch: int | None, *, live: bool) -> Seed:
    """The inspector of one seed, with the reason why it is blocked."""
    gates = [gate_view(record) for _, record in sorted(seed.gates.items())]
    return Seed(
        seed=seed.seed_id,
        slot=slot.slot_id,
        blueprint=seed.blueprint,
        stage=slot.stage if live else seed.end_stage,
        germinated_epoch=seed.germinated_epoch,
        incubation=seed.incubation,
        blend=seed.blend,
        tempo=seed.tempo,
        alpha_target=seed.alpha_target,
        parameters=seed.parameters,
        facts=_figures(seed.facts, epoch),
        gates=gates,
        blocked=_blocked(seed) if live and seed.end_stage is None else None,
        unavailable=None if seed.unavailable is None else _sentence(seed.unavailable.reason, seed.unavailable.epoch),
        veto=None
        if seed.veto is None
        else _sentence(f"{seed.veto.target_stage} vetoed by {seed.veto.by}: {seed.veto.reason}", seed.veto.epoch),
        ended=_ended(seed),
        alpha=curve(seed.alpha) if seed.alpha.seen else None,
        contribution=curve(seed.contribution) if seed.contribution.seen else None,
    )


def gate_view(record: GateRecord) -> Gate:
    """The last evaluation of a gate, each check in words."""
    return Gate(
        gate=record.gate,
        passed=record.passed,
        target=record.target_stage,
        text=record.message,
        evaluations=record.evaluations,
        failures=record.failures,
        checks=[_check(check) for check in record.checks],
        epoch=record.epoch,
        time=record.time,
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
    newest = max(seed.gates.values(), key=lambda record: (record.epoch is not None, record.epoch or 0, record.gate))
    if newest.passed:
        return None
    reasons = [words.check(check) for check in newest.checks if not check.get("passed")] or list(newest.failed)
    return _sentence(f"{newest.gate} keeps it from {newest.target_stage}: {'; '.join(reasons)}", newest.epoch)


def _ended(seed: SeedFold) -> str | None:
    if seed.end_stage is None:
        return None
    if seed.end_stage == "FOSSILIZED":
        cost = seed.facts.get("removal_cost")
        worth = f", worth {words.figure(cost.value)}" if cost is not None else ""
        return _sentence(f"kept for good{worth}", seed.end_epoch)
    by = f" by {seed.end_by}" if seed.end_by else ""
    return _sentence(f"pruned{by}: {seed.end_reason or 'no reason given'}", seed.end_epoch)


def _sentence(text: str, epoch: int | None) -> str:
    return f"{text} (epoch {epoch})" if epoch is not None else f"{text} (at an unknown time)"


def _action(record: ActionRecord) -> Action:
    relevant = _RELEVANT.get(record.op)
    return Action(
        op=record.op,
        outcome=record.outcome,
        epoch=record.epoch,
        time=record.time,
        slot=record.slot,
        blueprint=record.blueprint,
        blend=record.blend,
        alpha_target=record.alpha_target,
        tempo=record.tempo,
        reason=record.reason,
        why_not=record.why_not,
        evidence={name: number(float(value)) for name, value in record.evidence.items()},
        masked=list(record.masked),
        unused=[] if relevant is None else [head for head in HEADS if head not in relevant],
    )
