"""What a run showed, gathered from its events: results of every arm, paired differences, and the life of every seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from esper.karn import words
from esper.karn.stats import Interval, interval
from esper.leyline import SeedStage, TelemetryEvent
from esper.leyline import TelemetryEventType as T

STATIC: Final = "static"
"""The arm that others are compared with when it is there."""


class EpisodeRecord(msgspec.Struct, omit_defaults=True):
    """One finished episode of one arm."""

    arm: str
    policy: str
    seed: int
    episode: int
    env_id: int
    epochs: int
    status: str
    seconds: float
    host_parameters: int
    total_parameters: int
    seeds_kept: int
    validation_metric: float | None = None
    test_metric: float | None = None
    test_loss: float | None = None
    test_examples: int | None = None
    train_macs: int | None = None
    total_macs: int | None = None
    inference_macs: int | None = None


class SeedLife(msgspec.Struct, omit_defaults=True):
    """One seed from birth to its end, with the reason for it."""

    arm: str
    episode: int
    env_id: int
    slot: str
    seed_id: str
    outcome: str = "undecided"
    """``kept`` (it is in the network in the end), ``pruned``, ``undecided`` (the episode ended first) or ``left out``
    (kept after the epoch whose network is delivered)."""
    reason: str = ""
    blueprint: str | None = None
    parameters: int | None = None
    germinated_epoch: int | None = None
    germinated_because: str | None = None
    end_epoch: int | None = None
    stage: str | None = None
    removal_cost: float | None = None
    removal_cost_se: float | None = None
    removal_cost_epoch: int | None = None
    gate: str | None = None
    """The last gate evaluated, with its verdict in words."""


class Track(msgspec.Struct):
    """Course of one environment through one episode: what the figures are drawn from."""

    arm: str
    episode: int
    env_id: int
    metric: dict[int, float] = {}
    alphas: dict[str, dict[int, float]] = {}
    """seed id -> epoch -> alpha"""
    costs: dict[str, dict[int, tuple[float, float | None]]] = {}
    """seed id -> epoch -> removal cost and its standard error"""
    gains: dict[str, dict[int, tuple[float, float | None]]] = {}
    """seed id -> epoch -> probe gain and its standard error"""
    stages: dict[str, list[tuple[int, str]]] = {}
    """slot -> (epoch, stage from then on)"""


class ArmRow(msgspec.Struct, omit_defaults=True):
    """Means of one arm over its finished episodes; what no episode measured is missing."""

    arm: str
    episodes: int
    test: Interval | None = None
    validation: Interval | None = None
    parameters: float | None = None
    total_macs: float | None = None
    inference_macs: float | None = None
    seconds: float | None = None
    seeds_kept: float | None = None


class ArmDifference(msgspec.Struct, omit_defaults=True):
    """``arm`` minus ``control``, paired by seed; positive means that ``arm`` is better."""

    arm: str
    control: str
    pairs: int
    unpaired: int
    test: Interval | None = None
    validation: Interval | None = None
    macs_ratio: float | None = None
    """Total MACs of the arm over the control's, mean over pairs."""


class EndTable(msgspec.Struct, omit_defaults=True):
    """The table at the end of a run and at the head of its report."""

    metric: str
    unit: str
    higher_is_better: bool
    arms: list[ArmRow]
    differences: list[ArmDifference]


class RunEvidence(msgspec.Struct, omit_defaults=True):
    """Everything a report is written from."""

    run: dict[str, Any]
    """Payload of the first event of the run."""
    end: dict[str, Any] | None
    """Payload of its end event; ``None`` when there is none."""
    table: EndTable
    episodes: list[EpisodeRecord]
    seeds: list[SeedLife]
    tracks: list[Track]
    rollbacks: int = 0
    vetoes: int = 0
    dropped: int = 0
    events: int = 0


def build_end_table(events: Iterable[TelemetryEvent]) -> EndTable:
    """Results of every arm and their paired differences, from the journal's events alone."""
    return gather(events).table


def gather(events: Iterable[TelemetryEvent]) -> RunEvidence:
    """Fold a run's events into its evidence."""
    found = _Gatherer()
    for event in events:
        found.take(event)
    return found.evidence()


class _Gatherer:
    """One pass over the events."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.episodes: list[EpisodeRecord] = []
        self.seeds: dict[tuple[int, int, str], SeedLife] = {}
        self.tracks: dict[tuple[int, int], Track] = {}
        self.asked: dict[tuple[int, str], str] = {}
        self.counts = {"rollbacks": 0, "vetoes": 0, "dropped": 0, "events": 0}
        self._handlers = {
            T.EPISODE_STARTED: self._start_episode,
            T.EPISODE_ENDED: self._end_episode,
            T.EPOCH_COMPLETED: self._epoch,
            T.COMMAND_ISSUED: self._command,
            T.SEED_GERMINATED: self._germinated,
            T.SEED_GATE_EVALUATED: self._gate,
            T.SEED_FOSSILIZED: self._ended,
            T.SEED_PRUNED: self._ended,
            T.COUNTERFACTUAL_COMPUTED: self._counterfactual,
        }

    def take(self, event: TelemetryEvent) -> None:
        """Fold one event."""
        self.counts["events"] += 1
        match event.event_type:
            case T.TRAINING_STARTED:
                self.run = self.run or event.data
            case T.TRAINING_ENDED:
                self.end = event.data
            case T.GOVERNOR_ROLLBACK:
                self.counts["rollbacks"] += 1
            case T.TRANSITION_VETOED:
                self.counts["vetoes"] += 1
            case T.TELEMETRY_DROPPED:
                self.counts["dropped"] += event.data.get("count", 0)
        handler = self._handlers.get(event.event_type)
        if handler is not None and event.env_id is not None:
            handler(event, self._track(event))

    def evidence(self) -> RunEvidence:
        """What was found."""
        metric = self.run.get("metric", {})
        better = bool(metric.get("higher_is_better", True))
        table = EndTable(
            metric=metric.get("name", "metric"),
            unit=metric.get("unit", ""),
            higher_is_better=better,
            arms=_arms(self.episodes),
            differences=_differences(self.episodes, better),
        )
        for life in self.seeds.values():
            if life.outcome == "undecided" and not life.reason:
                held = f", {life.gate}" if life.gate else ""
                life.reason = f"in stage {life.stage or 'unknown'} when the episode ended{held}"
        return RunEvidence(
            self.run,
            self.end,
            table,
            self.episodes,
            list(self.seeds.values()),
            list(self.tracks.values()),
            **self.counts,
        )

    def _track(self, event: TelemetryEvent) -> Track:
        key = (event.env_id or 0, event.episode or 0)
        track = self.tracks.get(key)
        if track is None:
            track = self.tracks[key] = Track(event.data.get("arm", ""), key[1], key[0])
        return track

    def _life(self, event: TelemetryEvent, track: Track) -> SeedLife | None:
        if event.seed_id is None:
            return None
        key = (track.env_id, track.episode, event.seed_id)
        life = self.seeds.get(key)
        if life is None:
            life = self.seeds[key] = SeedLife(
                track.arm, track.episode, track.env_id, event.slot_id or "", event.seed_id
            )
        return life

    def _start_episode(self, event: TelemetryEvent, track: Track) -> None:
        track.arm = event.data.get("arm", track.arm)

    def _end_episode(self, event: TelemetryEvent, track: Track) -> None:
        data = event.data
        self.episodes.append(
            EpisodeRecord(
                arm=data.get("arm", track.arm),
                policy=data.get("policy", ""),
                seed=data.get("seed", 0),
                episode=track.episode,
                env_id=track.env_id,
                epochs=data.get("epochs", 0),
                status=data.get("status", ""),
                seconds=data.get("seconds", math.nan),
                host_parameters=data.get("host_parameters", 0),
                total_parameters=data.get("total_parameters", 0),
                seeds_kept=len(data.get("seeds", ())),
                **{name: data[name] for name in _MEASURED if data.get(name) is not None},
            )
        )

        if data.get("delivered") == "best":
            self._go_back(track, data)

    def _go_back(self, track: Track, data: dict[str, Any]) -> None:
        """The network of an earlier epoch is delivered: what is in it was kept, whatever became of it afterwards."""
        inside = {record["seed_id"]: record for record in data.get("seeds", ())}
        for (env_id, episode, seed_id), life in self.seeds.items():
            if (env_id, episode) != (track.env_id, track.episode):
                continue
            if seed_id in inside:
                record = inside[seed_id]
                life.outcome, life.stage = "kept", record.get("stage", life.stage)
                life.reason = record.get("reason", life.reason)
            elif life.outcome == "kept":
                life.outcome = "left out"
                life.reason = f"kept only after epoch {data.get('delivered_epoch')}, whose network is delivered"

    def _epoch(self, event: TelemetryEvent, track: Track) -> None:
        data, epoch = event.data, event.epoch or 0
        track.arm = data.get("arm", track.arm)
        if data.get("validation_metric") is not None:
            track.metric[epoch] = float(data["validation_metric"])
        for slot, stage in data.get("stages", {}).items():
            known = track.stages.setdefault(slot, [])
            if not known or known[-1][1] != stage:
                known.append((epoch, stage))
        live = {life.slot: life for life in self._living(track)}
        for slot, stage in data.get("stages", {}).items():
            if slot in live:
                live[slot].stage = stage
        for slot, alpha in data.get("alphas", {}).items():
            if slot in live:
                track.alphas.setdefault(live[slot].seed_id, {})[epoch] = float(alpha)

    def _living(self, track: Track) -> Iterable[SeedLife]:
        for (env_id, episode, _), life in self.seeds.items():
            if env_id == track.env_id and episode == track.episode and life.outcome != "pruned":
                yield life

    def _command(self, event: TelemetryEvent, track: Track) -> None:
        slot = event.data.get("slot", event.slot_id)
        if slot is not None and event.data.get("reason"):
            self.asked[track.env_id, slot] = event.data["reason"]

    def _germinated(self, event: TelemetryEvent, track: Track) -> None:
        life = self._life(event, track)
        if life is not None:
            life.blueprint, life.parameters = event.data.get("blueprint"), event.data.get("parameters")
            life.germinated_epoch, life.stage = event.epoch, SeedStage.GERMINATED.name
            life.germinated_because = self.asked.get((track.env_id, life.slot))

    def _gate(self, event: TelemetryEvent, track: Track) -> None:
        if event.data.get("gate") == "G0":
            return
        life = self._life(event, track)
        if life is not None:
            life.gate = _verdict(event)

    def _ended(self, event: TelemetryEvent, track: Track) -> None:
        life = self._life(event, track)
        if life is None:
            return
        data, kept = event.data, event.event_type is T.SEED_FOSSILIZED
        life.outcome, life.end_epoch = "kept" if kept else "pruned", event.epoch
        life.stage = (SeedStage.FOSSILIZED if kept else SeedStage.PRUNED).name
        life.blueprint = data.get("blueprint", life.blueprint)
        life.parameters = data.get("parameters", life.parameters)
        if data.get("removal_cost") is not None:
            life.removal_cost, life.removal_cost_se = data["removal_cost"], data.get("removal_cost_se")
            life.removal_cost_epoch = data.get("removal_cost_epoch")
        if kept:
            life.reason = life.gate or "no gate evaluation in the journal"
        else:
            life.reason = f"{data.get('reason')} (by {data.get('by', 'an unnamed hand')})"

    def _counterfactual(self, event: TelemetryEvent, track: Track) -> None:
        life, data = self._life(event, track), event.data
        if life is None:
            return
        for name, table in (("removal_cost", track.costs), ("probe_gain", track.gains)):
            if data.get(name) is not None:
                table.setdefault(life.seed_id, {})[event.epoch or 0] = (float(data[name]), data.get(f"{name}_se"))
        if data.get("removal_cost") is not None and life.outcome == "undecided":
            life.removal_cost, life.removal_cost_se = data["removal_cost"], data.get("removal_cost_se")
            life.removal_cost_epoch = event.epoch


def _verdict(event: TelemetryEvent) -> str:
    """A gate's verdict with the checks that decided it: the failed ones, or all that passed."""
    data, passed = event.data, bool(event.data.get("passed"))
    checks = [words.check(check) for check in data.get("checks", ()) if bool(check.get("passed")) is passed]
    checks = checks or [str(name) for name in data.get("checks_passed" if passed else "checks_failed", ())]
    return f"{data.get('gate')} {'passed' if passed else 'failed'} in epoch {event.epoch}: {'; '.join(checks)}"


_MEASURED: Final = (
    "validation_metric",
    "test_metric",
    "test_loss",
    "test_examples",
    "train_macs",
    "total_macs",
    "inference_macs",
)


def _arms(episodes: list[EpisodeRecord]) -> list[ArmRow]:
    arms = dict.fromkeys(episode.arm for episode in episodes)
    return [_arm(name, [episode for episode in episodes if episode.arm == name]) for name in arms]


def _arm(name: str, episodes: list[EpisodeRecord]) -> ArmRow:
    return ArmRow(
        arm=name,
        episodes=len(episodes),
        test=interval(_known(episode.test_metric for episode in episodes)),
        validation=interval(_known(episode.validation_metric for episode in episodes)),
        parameters=_mean(episode.total_parameters for episode in episodes),
        total_macs=_mean(episode.total_macs for episode in episodes),
        inference_macs=_mean(episode.inference_macs for episode in episodes),
        seconds=_mean(episode.seconds for episode in episodes),
        seeds_kept=_mean(episode.seeds_kept for episode in episodes),
    )


def _differences(episodes: list[EpisodeRecord], higher_is_better: bool) -> list[ArmDifference]:
    """The first arm that grows against every other; every other against static besides, where there is a static one."""
    arms = list(dict.fromkeys(episode.arm for episode in episodes))
    grown = next((arm for arm in arms if arm != STATIC), None)
    if grown is None:
        return []
    controls = sorted((arm for arm in arms if arm != grown), key=lambda arm: arm != STATIC)
    return [_difference(episodes, grown, control, 1.0 if higher_is_better else -1.0) for control in controls]


def _difference(episodes: list[EpisodeRecord], arm: str, control: str, sign: float) -> ArmDifference:
    sides: list[dict[tuple[int, int], EpisodeRecord]] = []
    for name in (arm, control):
        sides.append({(e.episode, e.seed): e for e in episodes if e.arm == name})
    pairs = [(sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1]]

    def paired(field: str) -> Interval | None:
        measured = [(getattr(a, field), getattr(b, field)) for a, b in pairs]
        return interval([sign * (a - b) for a, b in measured if a is not None and b is not None])

    ratios = [a.total_macs / b.total_macs for a, b in pairs if a.total_macs is not None and b.total_macs]
    return ArmDifference(
        arm=arm,
        control=control,
        pairs=len(pairs),
        unpaired=len(sides[0]) + len(sides[1]) - 2 * len(pairs),
        test=paired("test_metric"),
        validation=paired("validation_metric"),
        macs_ratio=_mean(ratios),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | int | None]) -> float | None:
    known = _known(values)
    return math.fsum(known) / len(known) if known else None
