"""From the folded state to what a face shows: ``build(state, now)``, a pure function of its arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from esper.karn import anomaly, bound, words
from esper.karn.advice import About
from esper.karn.fold_run import LEADERS, standing
from esper.karn.layout import lay_out
from esper.karn.network import grown, judged_environment
from esper.karn.parts import Factor, Figure, Level, number, travelling
from esper.karn.picture import Network
from esper.karn.pulse import PULSE
from esper.karn.schema import (
    SNAPSHOT_SCHEMA,
    Chip,
    Clock,
    Damage,
    DeviceGroup,
    EnvironmentRow,
    FeedItem,
    Progress,
    Pulse,
    RunHeader,
    Snapshot,
    StepSplit,
)
from esper.karn.state import EnvironmentFold, Facts, Measured, RunState, SlotFold, view
from esper.karn.verdict import Seen, Tables, make_verdict
from esper.leyline import TelemetryEvent

STALE_EPOCHS: Final = 2
SPARK: Final = 24
FEED: Final = 200
SILENT_AFTER: Final = 10.0
"""Seconds without an event after which the header says so."""
STEP_PARTS: Final = ("train_ms", "validate_ms", "counterfactual_ms", "policy_ms")
"""Parts of an epoch's time that add up; ``input_wait_ms`` lies within ``train_ms``."""


TIMES: Final = (*STEP_PARTS, "input_wait_ms")
"""What a verdict on what limits a run is judged by."""

_Part = tuple[tuple[float | None, ...], tuple[str, ...]]
"""Of one environment: ``TIMES`` of its newest epoch, and the stages of its slots, sorted."""


class Builder:
    """Builds snapshots, keeping rows and pictures of environments that said nothing since the last one.

    ``known`` is what the run's directory says of it, for the commands that a verdict ends with.
    """

    def __init__(self, known: About | None = None) -> None:
        self._known = known or About()
        self._tables = Tables()
        self._rows: dict[int, tuple[tuple[Any, ...], EnvironmentRow]] = {}
        self._parts: dict[int, tuple[tuple[Any, ...], _Part]] = {}
        self._items: dict[str, FeedItem] = {}
        self._networks: dict[int, tuple[tuple[Any, ...], Network]] = {}

    def build(
        self,
        state: RunState,
        now: float,
        damage: Sequence[Damage] = (),
        worst: int | None = None,
        gone: bool = False,
    ) -> Snapshot:
        """The snapshot at wall clock ``now``.

        ``damage`` is what the reader met. With ``worst``, rows are only built for so many environments, the worst ones.
        ``gone``: the process that wrote the run is not there any more.
        """
        ranks = ranks_of(state, now)
        ranked = sorted(ranks, key=ranks.__getitem__, reverse=True)  # stable: equals stay in order of their ids
        rows = {str(env_id): self.row(state, env_id, now) for env_id in sorted(ranked[:worst])}
        ended, better = state.run.end_status is not None, state.run.higher_is_better
        parts = [self._part(fold) for fold in state.environments.values()]
        steps = step_split([times for times, _ in parts])
        header, clock = run_header(state, now), _clock(state, now, ended)
        return Snapshot(
            schema=SNAPSHOT_SCHEMA,
            clock=clock,
            run=header,
            verdict=make_verdict(state, header, self._known, self._tables, Seen(clock.silent_for, gone, ranks)),
            pulse=_pulse(state),
            learner={name: figure(measured, None) for name, measured in sorted(state.learner.items())},
            operations=dict(sorted(state.op_counts.items())),
            steps=steps,
            bound=bound.detect(steps, state.host, state.run.threads),
            host=state.host,
            levels=_levels(ranks.values()),
            devices=_devices(state, ranks, ranked),
            environments=rows,
            stages=_stages(parts),
            census=[count for _, count in sorted(state.census.items())],
            **self._feeds(state),
            leaderboard=sorted(state.leaderboard, key=lambda row: standing(row, better))[:LEADERS],
            drops=list(state.drops),
            missing=sum(producer.missing for producer in state.producers.values()),
            unplaced=state.unplaced,
            damage=list(damage),
            network=self._picture(state),
        )

    def row(self, state: RunState, env_id: int, now: float) -> EnvironmentRow:
        """The board's row of one environment."""
        fold = state.environments[env_id]
        stale = stale_factor(state, fold, now)
        key = (*_identity(fold), None if stale is None else (stale.measured, stale.text))
        cached = self._rows.get(env_id)
        if cached is not None and cached[0] == key:
            return cached[1]
        row = environment_row(fold, stale, state.run.slots)
        self._rows[env_id] = (key, row)
        return row

    def picture(self, state: RunState, fold: EnvironmentFold) -> Network:
        """The network that has grown in an environment."""
        run = state.run
        # all of the run that it is drawn from; the host itself, since its id is free again once it is gone
        told = (run.host, run.host_parameters, tuple(run.slots), run.unit, run.exported_parameters, run.episodes)
        key, cached = (*_identity(fold), *told), self._networks.get(fold.env)
        if cached is not None and cached[0] == key:
            return cached[1]
        network = lay_out(grown(state, fold))
        self._networks[fold.env] = (key, network)
        return network

    def _picture(self, state: RunState) -> Network | None:
        """The network of the environment that the run is shown by."""
        fold = judged_environment(state)
        return None if fold is None else self.picture(state, fold)

    def _part(self, fold: EnvironmentFold) -> _Part:
        """What the environment adds to sums over all of them."""
        key, cached = _identity(fold), self._parts.get(fold.env)
        if cached is not None and cached[0] == key:
            return cached[1]
        part = _part(fold)
        self._parts[fold.env] = (key, part)
        return part

    def _feeds(self, state: RunState) -> dict[str, list[FeedItem]]:
        lists = {"feed": state.feed[-FEED:], "alarms": state.alarms[-FEED:], "governor": state.governor[-FEED:]}
        before, self._items = self._items, {}
        feeds: dict[str, list[FeedItem]] = {}
        for name, events in lists.items():
            feeds[name] = []
            for event in events:
                key = f"{event.producer}:{event.seq}"
                item = before.get(key) or self._items.get(key) or feed_item(event)
                self._items[key] = item
                feeds[name].append(item)
        return feeds


def build(
    state: RunState,
    now: float,
    damage: Sequence[Damage] = (),
    known: About | None = None,
) -> Snapshot:
    """One snapshot from scratch; :class:`Builder` gives the same one faster in a series."""
    return Builder(known).build(state, now, damage)


def opening(now: float, done: int, total: int) -> Snapshot:
    """What is shown while a long journal is read for the first time, after ``done`` of ``total`` bytes."""
    nothing = build(RunState(), now)
    text = f"reading the journal, {100 * done // max(1, total)} %"
    return msgspec.structs.replace(nothing, run=msgspec.structs.replace(nothing.run, state="reading", text=text))


def encode(snapshot: msgspec.Struct) -> bytes:
    """JSON; the same snapshot gives the same bytes."""
    return _ENCODER.encode(snapshot)


_ENCODER = msgspec.json.Encoder(order="deterministic")


def ranks_of(state: RunState, now: float) -> dict[int, float]:
    """What orders the board at ``now``, by environment in order of their ids: the anomaly's rank and silence."""
    ranks = {}
    for env_id in sorted(state.environments):
        fold = state.environments[env_id]
        ranks[env_id] = fold.rank
        stale = stale_factor(state, fold, now)
        if stale is not None:
            ranks[env_id] += stale.weight * stale.level
    return ranks


def stale_factor(state: RunState, fold: EnvironmentFold, now: float) -> Factor | None:
    """The anomaly factor of silence, where the run and the environment should still be talking."""
    last = fold.last_time
    if last is None or now - last <= anomaly.STALE_AT_LEAST:
        return None
    if state.run.end_status is not None or fold.status != "running":
        return None
    return anomaly.stale_factor(fold, now - last)


def _identity(fold: EnvironmentFold) -> tuple[Any, ...]:
    """Changes with every event about the environment, also where a resume told its story anew."""
    return fold.version, fold.episode, fold.last_time


def _part(fold: EnvironmentFold) -> _Part:
    facts = fold.facts
    times = [facts.get(name) for name in TIMES]
    steps = [None if fact is None or fact.epoch != fold.epoch else float(fact.value) for fact in times]
    return tuple(steps), tuple(sorted([slot.stage or "UNKNOWN" for slot in fold.slots.values()]))


def environment_row(fold: EnvironmentFold, stale: Factor | None = None, order: Sequence[str] = ()) -> EnvironmentRow:
    """One row of the flight board; ``stale`` joins its factors, and slots stand in ``order``, then as they spoke."""
    factors = [*anomaly.factors(fold.anomaly), *([stale] if stale is not None else [])]
    extra = 0.0 if stale is None else stale.weight * stale.level
    rank = fold.rank + extra
    facts = fold.facts
    return view(
        EnvironmentRow,
        fold,
        level=anomaly.status(rank),
        score=fold.score + extra,
        rank=rank,
        factors=sorted(factors, key=lambda f: -f.weight * f.level),
        metric=fact(facts, "validation_metric", fold.epoch),
        best=None if fold.best is None else figure(fold.best, None),
        loss=fact(facts, "validation_loss", fold.epoch),
        parameters=fact(facts, "parameters", fold.epoch),
        step_ms=_step(facts, fold.epoch),
        slots={name: _chip(fold.slots[name], fold.epoch) for name in in_order(fold.slots, order)},
        spark=[number(bucket.last) for bucket in fold.metric.buckets[-SPARK:]],
        last_action=_last_action(fold),
    )


def in_order(slots: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """Names of ``slots``, first those in ``order``."""
    return [*(name for name in order if name in slots), *(name for name in slots if name not in order)]


def figure(measured: Measured, epoch_now: int | None) -> Figure:
    """A measured value for the wire; ``stale`` by the epoch it is now."""
    value = measured.value
    stale = measured.epoch is not None and epoch_now is not None and epoch_now - measured.epoch > STALE_EPOCHS
    return Figure(
        value=value if isinstance(value, str) else travelling(value),  # type: ignore[arg-type]
        epoch=measured.epoch,
        time=measured.time,
        stale=stale,
    )


def fact(facts: Facts, name: str, epoch_now: int | None) -> Figure | None:
    """Figure of a named fact, absent when it was never measured."""
    measured = facts.get(name)
    return None if measured is None else figure(measured, epoch_now)


def feed_item(event: TelemetryEvent) -> FeedItem:
    """An event for the feed."""
    data = event.data
    return FeedItem(
        id=f"{event.producer}:{event.seq}",
        type=event.event_type.value,
        severity=words.severity(event),
        text=words.describe(event),
        time=event.timestamp,
        episode=event.episode,
        epoch=event.epoch,
        env=event.env_id,
        slot=event.slot_id,
        seed=event.seed_id,
        stage=data.get("to") or data.get("target_stage") or data.get("from"),
        blueprint=data.get("blueprint"),
        gate=data.get("gate"),
    )


def _chip(slot: SlotFold, epoch: int | None) -> Chip:
    seed, gate = slot.seed, slot.gate
    facts: Facts = {} if seed is None else seed.facts
    return Chip(
        slot=slot.slot,
        glyph=words.GLYPHS.get(slot.stage or "", "?"),
        stage=slot.stage,
        seed=None if seed is None else seed.seed,
        blueprint=None if seed is None else seed.blueprint,
        alpha=fact(facts, "alpha", epoch),
        gate=None if gate is None else gate.gate,
        gate_passed=None if gate is None else gate.passed,
        removal_cost=fact(facts, "removal_cost", epoch),
        generations=words.generations(len(slot.kept), slot.stage),
    )


def _step(facts: Facts, epoch: int | None) -> Figure | None:
    train = facts.get("train_ms")
    if train is None:
        return None
    parts = [float(facts[name].value) for name in STEP_PARTS if name in facts and facts[name].epoch == train.epoch]
    return figure(Measured(sum(parts), train.epoch, train.time), epoch)


def _last_action(fold: EnvironmentFold) -> str | None:
    if not fold.actions:
        return None
    action = fold.actions[-1]
    words_ = [action.op, action.slot, action.blueprint, action.outcome]
    return " ".join(word for word in words_ if word is not None)


def _clock(state: RunState, now: float, ended: bool) -> Clock:
    silent = None if ended or state.last_time is None else max(0.0, now - state.last_time)
    return Clock(events=state.events, now=now, time=state.last_time, silent_for=silent)


def run_header(state: RunState, now: float) -> RunHeader:
    """What runs, and how it is at wall clock ``now``."""
    kind, text = _condition(state, now)
    return view(RunHeader, state.run, state=kind, text=text, progress=_progress(state))


def _condition(state: RunState, now: float) -> tuple[str, str]:
    if state.run.end_status is not None:
        reason = f": {words.end_reason(state.run.end_reason)}" if state.run.end_reason else ""
        return "ended", f"ended, {state.run.end_status}{reason}"
    if state.last_time is None:
        return "waiting", "no event yet"
    silent = max(0.0, now - state.last_time)
    if silent >= SILENT_AFTER:
        return "silent", f"no event for {words.duration(silent)}"
    return "running", "running"


def _progress(state: RunState) -> Progress:
    run, total, share = state.run, None, None
    if run.kind == "ppo":
        # rounds, since twins that do not grow are played beside the learner's own episodes
        done = state.pulse.get("round")
        share = float(done.value) / run.episodes if done is not None and run.episodes else None
    elif run.episodes is not None and run.envs is not None and run.max_epochs is not None:
        total = run.episodes * run.envs * run.max_epochs
        share = min(1.0, state.epochs_done / total) if total else None
    eta = None
    if share and run.started is not None and state.last_time is not None and run.end_status is None:
        eta = (state.last_time - run.started) * (1 - share) / share
    return Progress(epochs_done=state.epochs_done, epochs_total=total, share=share, eta_seconds=eta)


def _pulse(state: RunState) -> list[Pulse]:
    pulses = []
    for name, rule in PULSE.items():
        measured = state.pulse.get(name)
        if measured is not None:
            level = rule.level(float(measured.value))
            pulses.append(view(Pulse, rule, name=name, figure=figure(measured, None), level=level))
    return pulses


def step_split(times: Sequence[tuple[float | None, ...]]) -> StepSplit:
    """Means of :data:`TIMES` over environments."""
    known = {name: [t for told in times if (t := told[at]) is not None] for at, name in enumerate(TIMES)}
    means = {name.removesuffix("_ms"): number(sum(each) / len(each)) for name, each in known.items() if each}
    return StepSplit(**means, environments=len(known["train_ms"]))


def _levels(ranks: Iterable[float]) -> dict[str, int]:
    counts = Counter(map(anomaly.status, ranks))
    levels: tuple[Level, ...] = (*(level for level, _ in anomaly.LEVELS), "ok")
    return {level: counts[level] for level in levels if counts[level]}


def _devices(state: RunState, ranks: dict[int, float], ranked: list[int]) -> list[DeviceGroup]:
    groups: dict[str, list[int]] = {}
    for env_id in ranked:
        groups.setdefault(state.environments[env_id].device, []).append(env_id)
    return [
        DeviceGroup(device=device, environments=members, level=anomaly.status(ranks[members[0]]))
        for device, members in sorted(groups.items())
    ]


def _stages(parts: list[_Part]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    # many environments are in the same state
    for stages, times in Counter(stages for _, stages in parts).items():
        for name in stages:
            counts[name] += times
    return dict(sorted(counts.items()))
