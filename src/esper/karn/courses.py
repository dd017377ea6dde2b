"""Everything that a journal measured over epochs, rounds and time, as points for charts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from esper.karn import bound
from esper.karn.fold_policy import host_vitals
from esper.karn.fold_seed import EMPTY
from esper.karn.parts import Part
from esper.karn.schema import Bound, HostVitals, Stretch
from esper.karn.snapshot import TIMES, step_split
from esper.leyline import DataError, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.nissa.segments import journal_bytes

LARGEST: Final = 64 << 20
"""Bytes of a journal up to which it is read whole for curves."""

EPOCH_CHARTS: Final = {
    "validation_metric": ("metric", ""),
    "validation_loss": ("loss", "validation"),
    "train_loss": ("loss", "training"),
    "learning_rate": ("learning rate", ""),
    "host_gradient_norm": ("gradient norm of the host", ""),
    "train_ms": ("time of an epoch's training, ms", ""),
    "parameters": ("parameters", ""),
}
"""Field of an epoch's end -> the chart that it is in, and what the line is called there besides its arm."""
ROUND_CHARTS: Final = {
    "mean_episode_return": "return",
    "mean_objective_gain": "gain of the objective",
    "entropy": "entropy of each head, nats",
    "kl": "KL of the update, nats",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
    "grad_norm": "gradient norm of the policy",
}
"""Field of a round of learning -> the chart that it is in."""
HEAD: Final = "head."

Points = list[tuple[int, float]]
"""Position (epoch, round or second) and value."""
Key = tuple[int, int, str]
"""Episode, environment and arm."""


class SeedLife(Part, kw_only=True, frozen=True):
    """The stages of one seed, for bands behind curves; the last stretch lasts where it has no end."""

    name: str
    arm: str
    env: int
    stretches: list[Stretch]


class BoundStretch(Part, kw_only=True, frozen=True):
    """Seconds of a run through which one thing limited it; ``text`` and ``advice`` are of its last sample."""

    kind: str
    since: int
    until: int
    text: str
    advice: str


class Course(msgspec.Struct):
    """What one environment measured through one episode, by one arm."""

    fields: dict[str, Points] = {}
    alphas: dict[str, Points] = {}
    costs: dict[str, Points] = {}
    rewards: Points = []
    seeds: dict[str, SeedLife] = {}


class Courses(msgspec.Struct):
    """All of one run."""

    unit: str = ""
    metric: str = ""
    courses: dict[Key, Course] = {}
    rounds: dict[str, Points] = {}
    vitals: dict[str, Points] = {}
    bounds: list[BoundStretch] = []
    done: list[tuple[float, int]] = []
    """Second of the end of each epoch, and its environment."""


class _Held:
    """The newest reading of one run, and the size of the journal that it is of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[int, Courses] | None = None

    def read(self, directory: Path, size: int) -> Courses:
        """What was read of a journal of that size, or is now."""
        with self._lock:
            if self._newest is None or self._newest[0] != size:
                self._newest = size, _read(directory)
            return self._newest[1]


@lru_cache(maxsize=64)
def _held(directory: Path) -> _Held:
    return _Held()


def read_courses(directory: Path) -> Courses:
    """What is in the journal of a run, up to where it can be read. Raises ``DataError`` for one that is too long."""
    size = sum(journal_bytes(directory))
    if size > LARGEST:
        raise DataError(f"{directory.name}: its journal is long ({size / 1e6:.0f} MB); ask it with esper query")
    return _held(directory).read(directory, size)


def _read(directory: Path) -> Courses:
    reading = _Reading()
    try:
        for event in read_journal(directory):
            reading.take(event)
    except DataError:
        if not reading.found.courses and not reading.found.rounds:
            raise
    return reading.found


class _Reading:
    """The journal's events, one after the other."""

    def __init__(self) -> None:
        self.found = Courses()
        self._start: float | None = None
        self._threads: int | None = None
        self._arms: dict[int, str] = {}
        self._names: dict[tuple[int | None, str | None], str] = {}
        """Environment and slot -> what the seed in it is called."""
        self._times: dict[int, dict[str, float]] = {}
        """Environment -> the parts of its newest epoch's time."""
        self._kinds: dict[T, Callable[[TelemetryEvent], None]] = {
            T.TRAINING_STARTED: self._started,
            T.EPISODE_STARTED: self._episode,
            T.PPO_UPDATE_COMPLETED: self._round,
            T.SEED_GERMINATED: self._germinated,
            T.SEED_STAGE_CHANGED: self._moved,
            T.EPOCH_COMPLETED: self._epoch,
            T.COUNTERFACTUAL_COMPUTED: self._cost,
            T.ANALYTICS_SNAPSHOT: self._analytics,
        }

    def take(self, event: TelemetryEvent) -> None:
        handler = self._kinds.get(event.event_type)
        if self._start is None:
            self._start = event.timestamp
        if handler is not None:
            handler(event)

    def _second(self, event: TelemetryEvent) -> float | None:
        return None if event.timestamp is None or self._start is None else event.timestamp - self._start

    def _started(self, event: TelemetryEvent) -> None:
        metric = event.data.get("metric", {})
        self.found.unit, self.found.metric = metric.get("unit", ""), metric.get("name", "")
        self._threads = event.data.get("threads")

    def _episode(self, event: TelemetryEvent) -> None:
        if event.env_id is not None:
            self._arms[event.env_id] = str(event.data.get("arm", ""))
            self._times[event.env_id] = {}
        self._names = {key: name for key, name in self._names.items() if key[0] != event.env_id}

    def _round(self, event: TelemetryEvent) -> None:
        at, rounds = int(event.data.get("round", 0)), self.found.rounds
        values = {name: event.data.get(name) for name in ROUND_CHARTS}
        values |= {f"{HEAD}{head}": told.get("entropy") for head, told in event.data.get("heads", {}).items()}
        _add(rounds, at, values)

    def _course(self, event: TelemetryEvent) -> Course | None:
        if event.epoch is None or event.env_id is None:
            return None
        arm = str(event.data.get("arm", self._arms.get(event.env_id, "")))
        return self.found.courses.setdefault((event.episode or 0, event.env_id, arm), Course())

    def _name(self, event: TelemetryEvent, slot: str | None) -> str:
        return self._names.get((event.env_id, slot), str(slot))

    def _germinated(self, event: TelemetryEvent) -> None:
        name = f"{event.data.get('blueprint') or event.seed_id} in {event.slot_id}"
        self._names[event.env_id, event.slot_id] = name
        self._live(event, "GERMINATED")

    def _moved(self, event: TelemetryEvent) -> None:
        self._live(event, str(event.data.get("to", "")))

    def _live(self, event: TelemetryEvent, stage: str) -> None:
        """A seed is in a stage from here on."""
        course, epoch = self._course(event), event.epoch
        if course is None or epoch is None or event.seed_id is None or event.env_id is None:
            return
        arm, name = self._arms.get(event.env_id, ""), self._name(event, event.slot_id)
        life = course.seeds.get(event.seed_id) or SeedLife(name=name, arm=arm, env=event.env_id, stretches=[])
        stretches = list(life.stretches)
        if stretches and stretches[-1].stage == stage:
            return
        if stretches and stretches[-1].until is None:
            stretches[-1] = replace(stretches[-1], until=epoch)
        if stage not in EMPTY:
            stretches.append(Stretch(stage=stage, since=epoch))
        course.seeds[event.seed_id] = replace(life, name=name, stretches=stretches)

    def _epoch(self, event: TelemetryEvent) -> None:
        course, at = self._course(event), event.epoch or 0
        if course is None or event.env_id is None:
            return
        _add(course.fields, at, {name: event.data.get(name) for name in EPOCH_CHARTS})
        _add(course.alphas, at, {self._name(event, slot): a for slot, a in event.data.get("alphas", {}).items()})
        told = {name: event.data[name] for name in TIMES if event.data.get(name) is not None}
        self._times.setdefault(event.env_id, {}).update(told)
        if (second := self._second(event)) is not None:
            self.found.done.append((second, event.env_id))

    def _cost(self, event: TelemetryEvent) -> None:
        if (course := self._course(event)) is not None:
            _add(course.costs, event.epoch or 0, {self._name(event, event.slot_id): event.data.get("removal_cost")})

    def _analytics(self, event: TelemetryEvent) -> None:
        kind, reward, second = event.data.get("kind"), event.data.get("reward"), self._second(event)
        if kind == "last_action" and reward is not None and (course := self._course(event)) is not None:
            course.rewards.append((event.epoch or 0, float(reward)))
        elif kind == "host_vitals" and second is not None and event.timestamp is not None:
            _add(self.found.vitals, round(second), event.data)
            self._limit(round(second), host_vitals(event.timestamp, event.data))

    def _limit(self, second: int, host: HostVitals) -> None:
        """What a face showed as the run's limit from this sample on."""
        times = [tuple(told.get(name) for name in TIMES) for told in self._times.values()]
        found: Bound = bound.detect(step_split(times), host, self._threads)
        bounds = self.found.bounds
        since = bounds[-1].until if bounds else 0
        if bounds and bounds[-1].kind == found.kind:
            since = bounds.pop().since
        new = BoundStretch(kind=found.kind, since=since, until=second, text=found.text, advice=found.advice)
        bounds.append(new)


def _add(into: dict[str, Points], at: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            into.setdefault(name, []).append((at, float(value)))
