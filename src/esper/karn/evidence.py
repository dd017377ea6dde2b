"""What a run showed: results of every arm, paired differences, and the life of every seed.

It is read off the one fold (:mod:`esper.karn.aggregator`) while that goes over the events; no payload is read here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from esper.karn import words
from esper.karn.advice import About
from esper.karn.aggregator import apply
from esper.karn.fold_common import known_seed
from esper.karn.layout import lay_out
from esper.karn.network import Grown, grown
from esper.karn.picture import Network
from esper.karn.results import STATIC, EndTable, end_table, left_out
from esper.karn.schema import Verdict
from esper.karn.snapshot import in_order, run_header
from esper.karn.state import EnvironmentFold, EpisodeRecord, GateFold, Measured, RunState, SeedFold, SlotFold, view
from esper.karn.verdict import make_verdict
from esper.leyline import SeedStage, TelemetryEvent, visible
from esper.leyline import TelemetryEventType as T


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
    verdict: Verdict
    updates: dict[str, dict[int, float]] = {}
    """Figure of the learner -> round -> value; ``open.HEAD`` is a head's entropy as a share of its greatest."""
    network: Network | None = None
    """What grew in the episode that is shown (:func:`shown_track`), as it is at its end, or now."""
    rollbacks: int = 0
    vetoes: int = 0
    dropped: int = 0
    events: int = 0

    def __repr__(self) -> str:
        return (
            f"RunEvidence({visible(str(self.run.get('task', 'a run')))!r}: {self.verdict.headline}; "
            f"{len(self.episodes)} episodes, {len(self.seeds)} seeds, {self.events:,} events)"
        )

    def _repr_html_(self) -> str:
        from esper.karn.notebook import evidence_html

        return evidence_html(self)


def gather(events: Iterable[TelemetryEvent], known: About | None = None) -> RunEvidence:
    """Fold a run's events, and keep of the fold what a report needs and a face forgets.

    ``known`` is what the run's directory says of it besides.
    """
    state, recorder = RunState(), _Recorder()
    for event in events:
        recorder.note(apply(state, event), event)
    return recorder.evidence(state, known or About())


def shown_track(evidence: RunEvidence) -> Track | None:
    """The track of the growing arm's best episode by validation; the first one while none has ended."""
    tracks = [track for track in evidence.tracks if track.arm != STATIC and track.metric] or [
        track for track in evidence.tracks if track.metric
    ]
    if not tracks:
        return None
    sign = 1.0 if evidence.table.higher_is_better else -1.0
    results: dict[tuple[int | None, int | None, str], float] = {
        (episode.env_id, episode.episode, episode.arm): sign * episode.validation_metric
        for episode in evidence.episodes
        if episode.validation_metric is not None and math.isfinite(episode.validation_metric)
    }
    main = [track for track in tracks if track.arm == tracks[0].arm]
    return max(main, key=lambda track: results.get((track.env_id, track.episode, track.arm), -math.inf))


class _Life(msgspec.Struct):
    """A seed of the fold, and what the fold knew of it at the moments that count."""

    track: Track
    seed: SeedFold
    because: str | None = None
    stage: str | None = None
    gate: GateFold | None = None
    cost: Measured | None = None
    cost_se: float | None = None


class _Recorder:
    """Looks at the fold after every event: it is bounded, and a report tells of every epoch and every seed."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.episodes: list[EpisodeRecord] = []
        self.results: dict[_Course, EpisodeRecord] = {}
        """Newest result of each track."""
        self.lives: dict[tuple[_Course, str], _Life] = {}
        self.tracks: dict[_Course, Track] = {}
        self.grown: dict[_Course, Grown] = {}
        """What had grown when each track ended."""
        self.counts: Counter[T] = Counter()
        self.updates: dict[str, dict[int, float]] = {}

    def note(self, state: RunState, event: TelemetryEvent) -> None:
        """Keep what ``event``, the last one folded into ``state``, has changed."""
        kind = event.event_type
        self.counts[kind] += 1
        if kind is T.TRAINING_STARTED:
            self.run = self.run or event.data
        elif kind is T.TRAINING_ENDED:
            self.end = event.data
        elif kind is T.PPO_UPDATE_COMPLETED:
            self._update(event.data)
        if event.env_id is None:
            return
        environment = state.environments[event.env_id]
        if kind in _COURSE:
            track = self._track(environment, event)
            if kind is T.EPOCH_COMPLETED:
                self._epoch(state, environment, track)
            elif kind is T.EPISODE_ENDED and environment.result is not None:
                self.episodes.append(environment.result)
                self.results[_course(track)] = environment.result
                if environment.arm != STATIC:
                    self.grown[_course(track)] = grown(state, environment)
        if kind in _LIFE and event.slot_id in environment.slots:
            self._seed(environment, environment.slots[event.slot_id], event)

    def _update(self, data: Mapping[str, Any]) -> None:
        at = data.get("round")
        if not isinstance(at, int):
            return
        heads = data.get("heads") or {}
        undecided = {f"open.{name}": one["entropy"] / one["most"] for name, one in heads.items() if one.get("most")}
        for name, value in {**{name: data.get(name) for name in LEARNING}, **undecided}.items():
            if isinstance(value, int | float):
                self.updates.setdefault(name, {})[at] = float(value)

    def evidence(self, state: RunState, known: About) -> RunEvidence:
        """What was kept."""
        run = state.run
        evidence = RunEvidence(
            run=self.run,
            end=self.end,
            table=end_table(self.episodes, run),
            episodes=self.episodes,
            updates=self.updates,
            seeds=[_told(life, self.results.get(course)) for (course, _), life in self.lives.items()],
            tracks=list(self.tracks.values()),
            verdict=make_verdict(state, run_header(state, state.last_time or 0.0), known),
            rollbacks=self.counts[T.GOVERNOR_ROLLBACK],
            vetoes=self.counts[T.TRANSITION_VETOED],
            dropped=sum(drop.count for drop in state.drops),
            events=state.events,
        )
        evidence.network = self._network(state, shown_track(evidence))
        return evidence

    def _network(self, state: RunState, shown: Track | None) -> Network | None:
        if shown is None:
            return None
        found, environment = self.grown.get(_course(shown)), state.environments.get(shown.env_id)
        if found is None and environment is not None and environment.episode == shown.episode:
            found = grown(state, environment)
        if found is None:
            return None
        if state.run.episodes == 1:
            found.exported = state.run.exported_parameters  # written after the episode's end
        return lay_out(found)

    def _track(self, environment: EnvironmentFold, event: TelemetryEvent) -> Track:
        key = (environment.env, event.episode or 0, environment.arm or "")
        track = self.tracks.get(key)
        if track is None:
            track = self.tracks[key] = Track(key[2], key[1], key[0])
        return track

    def _epoch(self, state: RunState, environment: EnvironmentFold, track: Track) -> None:
        epoch = environment.epoch
        if epoch is None:
            return
        if environment.metric.last is not None and environment.metric.last_at == epoch:
            track.metric[epoch] = environment.metric.last
        for name in in_order(environment.slots, state.run.slots):
            slot = environment.slots[name]
            spans = track.stages.setdefault(name, [])
            if slot.stage is not None and (not spans or spans[-1][1] != slot.stage):
                spans.append((epoch, slot.stage))
            # a rollback can empty a slot without an end of its seed, which is the last of the past ones then
            seed = slot.seed or (slot.past[-1] if slot.past else None)
            life = None if seed is None else self.lives.get((_course(track), seed.seed))
            if life is None or life.seed.stage == SeedStage.PRUNED.name:
                continue
            life.stage, alpha = slot.stage, life.seed.alpha
            if alpha.last is not None and alpha.last_at == epoch:
                track.alphas.setdefault(life.seed.seed, {})[epoch] = alpha.last

    def _seed(self, environment: EnvironmentFold, slot: SlotFold, event: TelemetryEvent) -> None:
        seed = known_seed(slot, event.seed_id or "")
        if seed is None:
            return
        track = self._track(environment, event)
        life = self.lives.setdefault((_course(track), seed.seed), _Life(track, seed))
        seed, kind = life.seed, event.event_type
        if kind is T.SEED_GERMINATED:
            asked = (act.reason for act in reversed(environment.actions) if act.slot == seed.slot and act.reason)
            life.because, life.stage = next(asked, None), SeedStage.GERMINATED.name
        elif kind is T.SEED_GATE_EVALUATED:
            if slot.gate is not None and slot.gate is seed.gates.get(slot.gate.gate):
                life.gate = slot.gate
        elif kind is T.COUNTERFACTUAL_COMPUTED and event.epoch is not None:
            for name, table in (("removal_cost", track.costs), ("probe_gain", track.gains)):
                value, error = seed.facts.get(name), seed.facts.get(f"{name}_se")
                if value is not None and value.epoch == event.epoch:
                    known = None if error is None or error.epoch != event.epoch else float(error.value)
                    table.setdefault(seed.seed, {})[event.epoch] = (float(value.value), known)
                    if name == "removal_cost" and seed.stage is None:
                        life.cost, life.cost_se = value, known


LEARNING: Final = ("mean_episode_return", "mean_objective_gain", "kl", "clip_fraction", "explained_variance")
"""Figures of a learner's rounds that a report has the course of."""
_Course = tuple[int, int, str]
"""Environment, episode and arm: twins are played in one environment, one after the other."""


def _course(track: Track) -> _Course:
    return track.env_id, track.episode, track.arm


_COURSE: Final = frozenset({T.EPISODE_STARTED, T.EPOCH_COMPLETED, T.EPISODE_ENDED})
_LIFE: Final = frozenset(
    {T.SEED_GERMINATED, T.SEED_GATE_EVALUATED, T.COUNTERFACTUAL_COMPUTED, T.SEED_FOSSILIZED, T.SEED_PRUNED}
)
_OUTCOMES: Final = {SeedStage.FOSSILIZED.name: "kept", SeedStage.PRUNED.name: "pruned"}


def _told(life: _Life, result: EpisodeRecord | None) -> SeedLife:
    """One seed's life as a report has it; ``result`` is of its episode, once that is over."""
    seed, cost, track = life.seed, life.cost, life.track
    error = life.cost_se
    if seed.end_cost is not None:
        cost, error = seed.end_cost, seed.end_cost_se
    outcome, gate = _OUTCOMES.get(seed.stage or "", "undecided"), _verdict(life.gate)
    if outcome == "pruned":
        reason = f"{seed.end_reason} (by {seed.end_by or 'an unnamed hand'})"
    elif outcome == "kept":
        reason = gate or "no gate evaluation in the journal"
    else:
        held = f", {gate}" if gate else ""
        reason = f"in stage {life.stage or 'unknown'} when the episode ended{held}"
    stage = seed.stage or life.stage
    if result is not None and result.delivered is not None:
        outcome, stage, reason = _in_what_is_delivered(result, seed.seed, (outcome, stage, reason))
    return view(
        SeedLife,
        seed,
        arm=track.arm,
        episode=track.episode,
        env_id=track.env_id,
        seed_id=seed.seed,
        outcome=outcome,
        reason=reason,
        germinated_because=life.because,
        stage=stage,
        removal_cost=None if cost is None else cost.value,
        removal_cost_se=error,
        removal_cost_epoch=None if cost is None else cost.epoch,
        gate=gate,
    )


def _in_what_is_delivered(
    result: EpisodeRecord, seed_id: str, last: tuple[str, str | None, str]
) -> tuple[str, str | None, str]:
    """Outcome, stage and reason where a network is delivered: what is in it was kept, whatever became of it afterwards
    (``last``).
    """
    outcome, stage, reason = last
    inside = next((seed for seed in result.seeds if seed.seed_id == seed_id), None)
    if inside is not None:
        return "kept", inside.stage or stage, inside.reason or reason
    why = left_out(result, seed_id)
    return ("left out", stage, why) if outcome == "kept" and why is not None else last


def _verdict(gate: GateFold | None) -> str | None:
    """A gate's verdict with the checks that decided it."""
    if gate is None:
        return None
    reasons = words.deciding(gate.checks, gate.passed, gate.deciding)
    return f"{gate.gate} {'passed' if gate.passed else 'failed'} in epoch {gate.epoch}: {reasons}"
