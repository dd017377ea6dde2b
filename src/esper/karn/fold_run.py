"""Folds of the run, its episodes and epochs, commands, safety, and telemetry about telemetry."""

from __future__ import annotations

import math
from typing import Any, Final

from msgspec.structs import asdict, fields, replace

from esper.karn import anomaly, words
from esper.karn.fold_common import measure, slot_in, smoothed, tally, trim
from esper.karn.fold_seed import GOVERNOR, set_stage, undo_openings
from esper.karn.parts import Number, number
from esper.karn.schema import Action, Drop, Leader, RunFacts
from esper.karn.state import (
    EPOCH_FACTS,
    DeliveredSeed,
    EnvironmentFold,
    EpisodeRecord,
    Measured,
    RunState,
    payload_keys,
    view,
)
from esper.leyline import HEADS, RELEVANT_HEADS, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.leyline.payloads.run import EpisodeStarted, TrainingStarted

ACTIONS = 50
_CHOICES: Final = ("blueprint", "blend", "alpha_target", "tempo")
"""Heads of an action besides op and slot, as the payload names them."""
_RELEVANT: Final = {op.name: frozenset(heads) for op, heads in RELEVANT_HEADS.items()}
LEADERS = 50
RESULTS = 2000
"""Newest episodes that a result is taken over."""


_OF_RUN: Final = payload_keys(TrainingStarted, str, int, into=RunFacts)
_OF_EPISODE: Final = tuple(
    name for name in payload_keys(EpisodeStarted, str, int, into=EnvironmentFold) if name != "seed"
)


def training_started(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Who runs what. A second one is a resume: what was learned before it stays."""
    run, data = state.run, event.data
    if run.started is None:
        run.started = event.timestamp
    else:
        run.resumed += 1
    run.end_status = run.end_reason = run.end_seconds = None
    for name in _OF_RUN:
        setattr(run, name, data.get(name))
    run.blueprints = list(data.get("blueprints", ()))
    run.slots = [*data.get("slots", ()), *(name for name in run.slots if name not in data.get("slots", ()))]
    run.examples = dict(data.get("examples", {}))
    metric = data.get("metric", {})
    run.metric, run.unit = metric.get("name"), metric.get("unit", "")
    run.higher_is_better, run.chance = metric.get("higher_is_better", True), metric.get("chance")
    run.low, run.high = metric.get("low"), metric.get("high")
    run.host = data.get("host")


def training_ended(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The only event that ends a run."""
    run, data = state.run, event.data
    run.end_status, run.end_reason = data.get("status"), data.get("reason")
    run.end_seconds = data.get("seconds")


def episode_started(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A fresh host: nothing measured on the last one may be painted as this one's."""
    if environment is None:
        state.unplaced += 1
        return
    facts: dict[str, Any] = {name: event.data.get(name) for name in _OF_EPISODE}
    seed = event.data.get("seed")
    state.environments[environment.env] = EnvironmentFold(
        env=environment.env,
        device=state.run.device or "unknown",
        episode=event.episode,
        epoch=0,
        seed=None if seed is None else str(seed),
        **facts,
        last_epoch_time=event.timestamp,
        last_time=event.timestamp,
        level=environment.level,
        rank=environment.rank,
        version=environment.version,
    )


def episode_ended(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A result for the leaderboard."""
    result = _result(event, "" if environment is None else environment.arm or "")
    if environment is not None:
        environment.result, environment.status = result, result.status
        measure(environment.loose_facts, asdict(result), ("test_metric", "test_loss"), event)
    state.run.episodes_ended += 1
    state.results.append(result)
    trim(state.results, RESULTS)
    host, total = result.host_parameters, result.total_parameters
    state.leaderboard.append(
        view(
            Leader,
            result,
            env=event.env_id,
            seed=str(result.seed),
            total_macs=None if result.total_macs is None else float(result.total_macs),
            parameters=total,
            growth=(total - host) / host if host else None,
            seconds=number(result.seconds),
            validation=_measured(result.validation_metric),
            test=_measured(result.test_metric),
        )
    )
    if len(state.leaderboard) >= 2 * LEADERS:
        state.leaderboard.sort(key=lambda row: standing(row, state.run.higher_is_better))
        del state.leaderboard[LEADERS:]


def _result(event: TelemetryEvent, arm: str) -> EpisodeRecord:
    data = event.data
    known = ("stage", "reason", "blueprint", "parameters")
    seeds = [
        DeliveredSeed(seed["seed_id"], slot=seed.get("slot_id"), **{name: seed.get(name) for name in known})
        for seed in data.get("seeds", ())
    ]
    return EpisodeRecord(
        arm=data.get("arm", arm),
        policy=data.get("policy", ""),
        seed=data.get("seed", 0),
        episode=event.episode,
        env_id=event.env_id,
        epochs=data.get("epochs", 0),
        status=data.get("status", "completed"),
        seconds=data.get("seconds", math.nan),
        host_parameters=data.get("host_parameters", 0),
        total_parameters=data.get("total_parameters", 0),
        seeds_kept=len(seeds),
        seeds=seeds,
        **{name: data[name] for name in _MEASURED if data.get(name) is not None},
    )


_MEASURED: Final = tuple(field.name for field in fields(EpisodeRecord) if not field.required and field.name != "seeds")


def _measured(value: float | None) -> Number | None:
    return None if value is None else number(float(value))


def standing(row: Leader, higher_is_better: bool) -> tuple[Any, ...]:
    """Sort key of the leaderboard: best test metric first, then validation; unmeasured and NaN last."""
    keys: list[Any] = []
    for told in (row.test, row.validation):
        value = math.nan if told is None else float(told)
        known = not math.isnan(value)
        keys += [not known, (-value if higher_is_better else value) if known else 0.0]
    return (*keys, row.env if row.env is not None else -1, row.episode if row.episode is not None else -1)


def epoch_completed(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The commit barrier of an epoch: facts, curves, slots, and the anomaly score that follows from them."""
    if environment is None:
        state.unplaced += 1
        return
    data, epoch = event.data, event.epoch
    state.epochs_done += 1
    environment.epoch = epoch
    environment.arm = data.get("arm", environment.arm)
    _pace(environment, event.timestamp)
    _report(environment, event)
    if epoch is not None:
        _curves(state, environment, epoch, event)
    _slots(state, environment, event)
    step = data.get("train_ms")
    if step is not None and math.isfinite(step):
        typical = state.typical_train_ms
        # Steps up are smaller than steps down, so that this settles near the lower fifth whatever the order.
        state.typical_train_ms = step if typical is None else typical * (1.05 if step > typical else 0.8)
    anomaly.update(state, environment)


def _report(environment: EnvironmentFold, event: TelemetryEvent) -> None:
    """Keep the event for what it measured, and of the one before only what this one does not say."""
    data, before = event.data, environment.report
    if before is not None and not before.data.keys() <= data.keys():
        for name in EPOCH_FACTS:
            if name not in data and (old := before.data.get(name)) is not None:
                environment.loose_facts[name] = Measured(old, before.epoch, before.timestamp)
    odd = []
    for name, value in data.items():
        # NaN for NaN and infinities, 0 for every other number
        if type(value) is float and value - value and name in _PLACES:
            odd.append(name)
    if len(odd) > 1:
        odd.sort(key=_PLACES.__getitem__)
    environment.report, environment.non_finite = event, odd


_PLACES: Final = {name: place for place, name in enumerate(EPOCH_FACTS)}


def _pace(environment: EnvironmentFold, now: float | None) -> None:
    before = environment.last_epoch_time
    environment.last_epoch_time = now
    if now is not None and before is not None and now >= before:
        environment.epoch_seconds = smoothed(environment.epoch_seconds, now - before)


def _curves(state: RunState, environment: EnvironmentFold, epoch: int, event: TelemetryEvent) -> None:
    loss, metric = event.data.get("validation_loss"), event.data.get("validation_metric")
    if loss is not None:
        environment.loss.add(epoch, loss)
    if metric is None:
        return
    metric, before = float(metric), environment.metric.last
    environment.metric.add(epoch, metric)
    if not math.isfinite(metric):
        return
    if environment.first_metric is None:
        environment.first_metric = metric
    if before is not None and math.isfinite(before):
        environment.wobble = smoothed(environment.wobble, abs(metric - before))
    best = environment.best
    better = best is None or (metric > best.value if state.run.higher_is_better else metric < best.value)  # type: ignore[operator]
    if better:
        environment.best = Measured(metric, epoch, event.timestamp)


def _slots(state: RunState, environment: EnvironmentFold, event: TelemetryEvent) -> None:
    data, epoch, time, slots = event.data, event.epoch, event.timestamp, environment.slots
    for name, stage in data.get("stages", _NOTHING).items():
        slot = slots.get(name) or slot_in(state, environment, name)
        if slot.stage != stage:
            set_stage(slot, stage, epoch)
    for key, fact in BY_SLOT:
        if not (values := data.get(key)):
            continue
        for name, value in values.items():
            seed = (slots.get(name) or slot_in(state, environment, name)).seed
            if seed is not None:
                seed.facts[fact] = Measured(value, epoch, time)
                if key == "alphas" and epoch is not None:
                    seed.alpha.add(epoch, value)


_NOTHING: Final[dict[str, Any]] = {}
BY_SLOT: Final = (
    ("alphas", "alpha"),
    ("seed_gradient_norm_ratios", "seed_gradient_norm_ratio"),
    ("gradient_healths", "gradient_health"),
    ("seed_macs", "macs"),
)
"""Payload key of the values by slot -> fact of the slot's seed."""


def command_issued(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A policy asked for something, with its reason."""
    data = event.data
    op = data.get("op", "")
    state.op_counts[op] = state.op_counts.get(op, 0) + 1
    if environment is None:
        state.unplaced += 1
        return
    evidence = {name: number(float(value)) for name, value in data.get("evidence", {}).items()}
    _act(environment, event, op=op, outcome="issued", reason=data.get("reason"), evidence=evidence)


def _act(environment: EnvironmentFold, event: TelemetryEvent, **said: Any) -> None:
    data, relevant = event.data, _RELEVANT.get(said["op"])
    said |= {name: data.get(name) for name in _CHOICES}
    said["unused"] = [] if relevant is None else [head for head in HEADS if head not in relevant]
    slot = data.get("slot", event.slot_id)
    environment.actions.append(Action(epoch=event.epoch, time=event.timestamp, slot=slot, **said))
    environment.actions_seen += 1
    trim(environment.actions, ACTIONS)


def command_settled(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """What became of the newest open command of the same op and slot."""
    outcome = "executed" if event.event_type is T.COMMAND_EXECUTED else "failed"
    tally(state, "command_success", outcome == "executed", event)
    data = event.data
    if environment is None:
        state.unplaced += 1
        return
    op, slot, actions = data.get("op", ""), data.get("slot", event.slot_id), environment.actions
    for place in reversed(range(len(actions))):
        action = actions[place]
        if action.outcome == "issued" and action.op == op and action.slot == slot:
            actions[place] = replace(action, outcome=outcome, why_not=data.get("why_not"))
            return
    _act(environment, event, op=op, outcome=outcome, why_not=data.get("why_not"))


def model_exported(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The grown model was written."""
    state.run.exported = words.describe(event)
    state.run.exported_parameters, state.run.folded = event.data.get("parameters"), len(event.data.get("folded", ()))


def compute_spent(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Multiply-accumulates since the episode began."""
    if environment is None:
        state.unplaced += 1
        return
    measure(environment.compute, event.data, (name for name in event.data if name != "arm"), event)


def _governor(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    state.governor.append(event)
    trim(state.governor, GOVERNOR)
    if environment is not None and event.data.get("device") is not None:
        environment.device = event.data["device"]


def governor_snapshot(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A last-known-good state was kept."""
    if environment is not None:
        measure(environment.loose_facts, {"last_good_epoch": event.data.get("of_epoch")}, ("last_good_epoch",), event)


def governor_panic(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Vital signs failed."""
    _governor(state, event, environment)
    if environment is not None:
        if event.epoch is not None:
            environment.panics.append(event.epoch)
            trim(environment.panics, 16)
        anomaly.update(state, environment)


def governor_rollback(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """The environment went back to a good state; its curves keep what really happened."""
    _governor(state, event, environment)
    if environment is not None:
        environment.rollbacks += 1  # the payload has how many there were before
        if (to_epoch := event.data.get("to_epoch")) is not None:
            undo_openings(environment, to_epoch)
        anomaly.update(state, environment)


def checkpoint(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """Saved or loaded."""
    state.run.checkpoint = words.describe(event)


def dropped(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """A sink lost events."""
    data = event.data
    key = (data.get("sink", ""), data.get("event_type", ""), data.get("reason", ""))
    for place, drop in enumerate(state.drops):
        if (drop.sink, drop.type, drop.reason) == key:
            state.drops[place] = replace(drop, count=drop.count + data.get("count", 0))
            return
    state.drops.append(Drop(sink=key[0], type=key[1], reason=key[2], count=data.get("count", 0)))


def level_set(state: RunState, event: TelemetryEvent, environment: EnvironmentFold | None) -> None:
    """How much this run says."""
    state.run.level, state.run.lifecycle_only = event.data.get("level"), bool(event.data.get("lifecycle_only"))
    state.run.suppressed = list(event.data.get("suppressed", ()))
