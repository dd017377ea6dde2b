"""Folds of a seed's life: stages, gates, alpha, contribution."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from esper.karn import words
from esper.karn.fold_common import measure, measure_aged, retire, seed_of, slot_in, slot_of, tally, trim
from esper.karn.schema import Census, Stretch
from esper.karn.state import EnvironmentFold, GateFold, Measured, Refusal, RunState, SeedFold, SlotFold, payload_keys
from esper.leyline import SeedStage, TelemetryEvent
from esper.leyline.payloads.measured import CounterfactualComputed

NOW: Final = ("alpha", "parameters", "isolation_violations", "has_vanishing", "has_exploding")
"""Health fields that are as old as the event that carries them."""

AGED: Final = ("seed_gradient_norm_ratio", "gradient_health", "removal_cost", "probe_gain")
"""Health fields with a companion epoch."""

ROW_CONTRIBUTION: Final = ("all_off_metric", "all_off_loss", "interaction")
CONTRIBUTION: Final = tuple(
    name
    for name in payload_keys(CounterfactualComputed, int, float)
    if name not in (*ROW_CONTRIBUTION, "passes", "alpha")
)

SPANS = 32
RECENT = 32
EMPTY: Final = frozenset({SeedStage.DORMANT.name, SeedStage.EMBARGOED.name, SeedStage.RESETTING.name})
"""Stages in which a slot holds nothing and remembers its last seed as past."""


def germinated(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A seed appears in the slot."""
    slot = slot_of(state, event, environment)
    if slot is None:
        return
    data = event.data
    seed = seed_of(slot, event)
    if seed is None:
        seed = slot.seed = SeedFold(seed=event.seed_id or "", slot=slot.slot)
        slot.seeds_seen += 1
    seed.blueprint = data.get("blueprint")
    seed.germinated_epoch = event.epoch
    seed.incubation, seed.blend = data.get("incubation"), data.get("blend")
    seed.tempo, seed.alpha_target = data.get("tempo"), data.get("alpha_target")
    _health(seed, event)
    _count(state, seed.blueprint, germinated=1)
    arm = _arm(environment)
    state.germinated[arm] = state.germinated.get(arm, 0) + 1
    if slot.gate is not None and slot.gate.gate == "G0":
        seed.gates.setdefault("G0", slot.gate)


def gate_evaluated(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Keep the last evaluation of each gate, with every check."""
    slot = slot_of(state, event, environment)
    if slot is None or environment is None:
        return
    data = event.data
    gate, passed = str(data.get("gate")), bool(data.get("passed"))
    seed = None if gate == "G0" else seed_of(slot, event)
    before = seed.gates.get(gate) if seed is not None else None
    slot.gate = record = GateFold(
        gate=gate,
        passed=passed,
        target=data.get("target_stage", ""),
        text=data.get("message", ""),
        evaluations=1 if before is None else before.evaluations + 1,
        failures=(0 if before is None else before.failures) + (not passed),
        checks=data.get("checks", []),
        deciding=data.get("checks_passed" if passed else "checks_failed", []),
        epoch=event.epoch,
        time=event.timestamp,
    )
    if seed is not None:
        seed.gates[gate] = record
        _health(seed, event)
    tally(state, "gate_pass", passed, event)
    if not passed:
        blueprint = data.get("blueprint") or (seed.blueprint if seed is not None else None)
        if blueprint is not None:
            _count(state, blueprint, refused=1)
        _refused(state.refusals.setdefault(_arm(environment), {}), record, slot.slot)
        if event.epoch is not None:
            environment.gate_failures.append(event.epoch)
            trim(environment.gate_failures, RECENT)


def _arm(environment: EnvironmentFold | None) -> str:
    return "" if environment is None else environment.arm or ""


def _refused(refusals: dict[str, Refusal], gate: GateFold, slot: str) -> None:
    for check in gate.checks:
        if not check.get("passed"):
            key = f"{gate.gate} {check.get('id')}"
            before = refusals.get(key)
            refusals[key] = Refusal(1 + (0 if before is None else before.count), gate.gate, check, gate.epoch, slot)


def stage_changed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Move the slot, and close the stretch it spent in its last stage."""
    slot = slot_of(state, event, environment)
    if slot is None:
        return
    to = str(event.data.get("to"))
    seed = seed_of(slot, event) if to not in EMPTY else slot.seed
    if seed is not None:
        _health(seed, event)
    set_stage(slot, to, event.epoch)


def set_stage(slot: SlotFold, stage: str, epoch: int | None) -> None:
    """Record that the slot is in ``stage`` from ``epoch`` on; a slot that became empty keeps its seed as past."""
    if slot.stage == stage:
        return
    slot.stage = stage
    if epoch is not None:
        lanes, seed = slot.swimlane, slot.seed
        if lanes and lanes[-1].until is None:
            lanes[-1] = replace(lanes[-1], until=epoch)
        lanes.append(Stretch(stage=stage, since=epoch, seed=None if seed is None else seed.seed))
        trim(lanes, SPANS)
    if stage in EMPTY:
        retire(slot)


def alpha_retargeted(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A ramp began."""
    seed = _seed(state, event, environment)
    if seed is not None:
        seed.alpha_target = event.data.get("alpha_target")
        seed.tempo, seed.blend = event.data.get("tempo"), event.data.get("blend")
        _health(seed, event)


def fossilized(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The seed is kept for good."""
    seed = _seed(state, event, environment)
    if seed is None:
        return
    _health(seed, event)
    measure(seed.facts, event.data, ("removal_cost_se", "removal_cost_loss"), event)
    _end(seed, SeedStage.FOSSILIZED, event)
    _count(state, seed.blueprint, fossilized=1)
    tally(state, "seeds_kept", True, event)


def reopened(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The slot is open again; the seed that it kept stays, beneath what comes."""
    slot = slot_of(state, event, environment)
    seed = None if slot is None else seed_of(slot, event)
    if slot is None or seed is None:
        return
    _health(seed, event)
    seed.reopened_epoch = event.epoch
    if seed is slot.seed:
        slot.seed = None
    slot.kept.append(seed)
    set_stage(slot, SeedStage.DORMANT.name, event.epoch)


def undo_openings(environment: EnvironmentFold, to_epoch: int) -> None:
    """Of a network that went back to ``to_epoch``: a slot that opened later holds the seed that it had kept then."""
    for slot in environment.slots.values():
        while slot.kept and (slot.kept[-1].reopened_epoch or 0) > to_epoch:
            retire(slot)
            seed = slot.seed = slot.kept.pop()
            seed.reopened_epoch = None
            if seed.end_epoch is None or seed.end_epoch > to_epoch:
                seed.stage = seed.end_epoch = seed.end_cost = seed.end_cost_se = None


def pruned(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The seed is gone; its reason stays."""
    seed = _seed(state, event, environment)
    if environment is not None and event.epoch is not None:
        environment.prunes.append(event.epoch)
        trim(environment.prunes, RECENT)
    if seed is None:
        return
    _health(seed, event)
    _end(seed, SeedStage.PRUNED, event)
    seed.end_reason, seed.end_by = event.data.get("reason"), event.data.get("by")
    _count(state, seed.blueprint, pruned=1)
    tally(state, "seeds_kept", False, event)


def _end(seed: SeedFold, stage: SeedStage, event: TelemetryEvent) -> None:
    data = event.data
    seed.stage, seed.end_epoch = stage.name, event.epoch
    if (cost := data.get("removal_cost")) is not None:
        seed.end_cost, seed.end_cost_se = Measured(cost, data.get("removal_cost_epoch")), data.get("removal_cost_se")


def vetoed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A move that was not made."""
    if event.data.get("by") == "governor":
        state.governor.append(event)
        trim(state.governor, GOVERNOR)
    slot = slot_of(state, event, environment)
    seed = seed_of(slot, event) if slot is not None else None
    if seed is not None:
        _health(seed, event)
        target, by, reason = (event.data.get(name, "") for name in ("target_stage", "by", "reason"))
        seed.veto = words.dated(f"{target} vetoed by {by}: {reason}", event.epoch)


def isolation_violation(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Gradient leaked to the host through the seed."""
    seed = _seed(state, event, environment)
    if seed is not None:
        _health(seed, event)
        measure(seed.facts, event.data, ("host_gradient_norm",), event)
        if (violations := event.data.get("violations")) is not None:
            measure(seed.facts, {"isolation_violations": violations}, ("isolation_violations",), event)


def counterfactual(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """What the metric loses without the seed, and what all seeds are worth together."""
    if environment is not None:
        measure(environment.loose_facts, event.data, ROW_CONTRIBUTION, event)
        if event.slot_id is None:
            return
    seed = _seed(state, event, environment)
    if seed is None:
        return
    data = event.data
    measure(seed.facts, data, CONTRIBUTION, event)
    seed.unavailable = None
    if (cost := data.get("removal_cost")) is not None and event.epoch is not None:
        seed.costs.add(event.epoch, cost)
    value = data.get("removal_cost", data.get("probe_gain"))
    if value is not None and event.epoch is not None:
        seed.contribution.add(event.epoch, value)


def counterfactual_unavailable(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Nothing was measured, and why."""
    if event.slot_id is None and event.env_id is not None:
        return
    seed = _seed(state, event, environment)
    if seed is not None:
        seed.unavailable = words.dated(event.data.get("reason", ""), event.epoch)


def promises_measured(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Empty slots were auditioned; the feed says what they promise."""
    if environment is not None:
        for name in event.data.get("promises", ()):
            slot_in(state, environment, name)


GOVERNOR = 100
"""Newest governor events kept."""


def _seed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> SeedFold | None:
    slot = slot_of(state, event, environment)
    return None if slot is None else seed_of(slot, event)


def _health(seed: SeedFold, event: TelemetryEvent) -> None:
    data: dict[str, Any] = event.data
    if not _HEALTH.isdisjoint(data):
        measure(seed.facts, data, NOW, event)
        measure_aged(seed.facts, data, AGED, event)
    if "blueprint" in data:
        seed.blueprint = data["blueprint"]
    if "parameters" in data:
        seed.parameters = data["parameters"]


_HEALTH: Final = frozenset((*NOW, *AGED))


def _count(state: RunState, blueprint: str | None, **more: int) -> None:
    name = blueprint or "unknown"
    known = state.census.get(name) or Census(blueprint=name, germinated=0, fossilized=0, pruned=0, refused=0)
    state.census[name] = replace(known, **{kind: getattr(known, kind) + count for kind, count in more.items()})
