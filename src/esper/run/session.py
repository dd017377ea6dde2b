"""One run from start to end: its directory, its hub and journal, its signals, and how it ended, as an event."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from esper.leyline import DataError, Metric, Severity, TelemetryEvent, UsageError
from esper.leyline import TelemetryEventType as T
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter, Supersede
from esper.nissa.rundir import RunDirectory
from esper.nissa.vitals import Sampler, VitalsRecorder, find_gpu
from esper.run.stopping import Stopped, StopRequests
from esper.tolaria import checkpoint
from esper.tolaria.ranks import LONE, Ranks, RanksDiffer

RUN: Final = "run"
"""Producer of what is said about the run as such, checkpoints and resumes: the events of training keep their numbers
however often a run was cut."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Where a run writes and what it says."""

    kind: str
    run_dir: str | None = None
    """A directory that does not exist yet or is empty; ``None`` makes a fresh one below ``base``."""
    base: str = "runs"
    level: str = "normal"
    lifecycle_only: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict)
    resume: ResumePoint | None = None
    """Go on in the run directory that this says, in a new segment of its journal; ``run_dir`` is not looked at."""
    ranks: Ranks = LONE
    """Those of the run, of which rank 0 alone writes."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where in a run's history to go on: behind event ``hub["last_seq"]`` of training."""

    directory: RunDirectory
    hub: Mapping[str, Any]
    """See :meth:`NissaHub.state`."""
    seconds: float
    cpu_seconds: float
    """What the run had taken up to there."""
    end: tuple[int, int] | None = None
    """See :class:`Supersede`."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a run is about to do. See the ``TRAINING_STARTED`` payload."""

    task: str
    policy: str
    metric: Metric
    slots: tuple[str, ...]
    blueprints: tuple[str, ...]
    episodes: int
    envs: int
    max_epochs: int
    device: str
    examples: Mapping[str, int]
    host_parameters: int
    host: Mapping[str, Any] | None = None
    """See :func:`esper.kasmina.anatomy.host_record`."""


class Session:
    """An open run. ``emit`` takes events; ``directory`` is where everything goes."""

    def __init__(
        self,
        directory: RunDirectory,
        hub: SessionHub,
        stop: StopRequests,
        point: ResumePoint | None,
        ranks: Ranks = LONE,
    ) -> None:
        self.directory = directory
        self.ranks = ranks
        self.hub = hub
        self.stop = stop
        self.point = point
        before = (0.0, 0.0) if point is None else (point.seconds, point.cpu_seconds)
        self._started = time.perf_counter() - before[0]
        self.elsewhere: Callable[[], float] = float
        """CPU seconds of the run's other processes."""
        self.gpus: list[str] = []
        """Names of those that the run computes on, by rank; known once it is announced."""
        self._announced: int | None = None
        self._cpu_started = (0.0 if point is None else time.process_time()) - before[1]

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def writes(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.ranks.rank == 0

    @property
    def untouched(self) -> bool:
        """Whether nothing was done since the run was announced."""
        return self._announced is None or self._announced == self.hub.last_seq

    @property
    def seconds(self) -> float:
        """What the run has taken, without work that a resume repeated."""
        return time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """The same in CPU time, of all processes."""
        return time.process_time() + self.elsewhere() - self._cpu_started

    @property
    def took(self) -> dict[str, float]:
        """Both."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def emit(self, event: TelemetryEvent) -> None:
        """Send an event to every sink."""
        self.hub.emit(event)

    def announce(self, kind: str, what: Announcement) -> None:
        """Say what is about to run, or to go on."""
        self.gpus = [name for names in self.ranks.all(checkpoint.gpus_of(what.device)) for name in names]
        metric = {name: value for name, value in asdict(what.metric).items() if value is not None}
        plain = {**asdict(what), "slots": list(what.slots), "blueprints": list(what.blueprints), "metric": metric}
        if plain["host"] is None:
            del plain["host"]
        about = {"run_id": self.directory.run_id, "kind": kind, "threads": torch.get_num_threads(), **plain}
        if self.point is None:
            self.say(T.TRAINING_STARTED, **about)
        else:
            self.note(T.TRAINING_STARTED, **about, resumed_after_seq=self.point.hub["last_seq"])
        self._announced = self.hub.last_seq
        if not self.writes:
            return
        sampler = Sampler(os.getpid(), gpu=find_gpu(_uuids(what.device)), disk=self.path)
        self.hub.vitals = VitalsRecorder(sampler)

    def say(self, event_type: T, **data: Any) -> None:
        """Send an event of the run itself."""
        self.hub.emit(TelemetryEvent(event_type=event_type, data=data))

    def note(self, event_type: T, severity: Severity = "info", **data: Any) -> None:
        """Send an event about checkpoints and resumes, which an uninterrupted run would not have."""
        self.hub.emit(TelemetryEvent(event_type=event_type, producer=RUN, severity=severity, data=data))


def _uuids(device: str) -> list[str]:
    """Of the GPU that this process computes on, as NVML knows it."""
    if not device.startswith("cuda"):
        return []
    return [f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"]


class SessionHub(NissaHub):
    """A hub that no signal leaves half-way: with an event that has its number and is in no journal.

    Before each event it tells the vitals that were sampled meanwhile, until it is closed.
    """

    vitals: VitalsRecorder | None = None

    def __init__(self, stop: StopRequests, *, level: str, lifecycle_only: bool) -> None:
        super().__init__(level=level, lifecycle_only=lifecycle_only)
        self._stop = stop

    def emit(self, event: TelemetryEvent) -> None:
        with self._stop.shielded():
            if self.vitals is not None:
                for sampled in self.vitals.take():
                    super().emit(sampled)
            super().emit(event)

    def flush(self, barrier: bool = False) -> None:
        with self._stop.shielded():
            super().flush(barrier)

    def close(self) -> None:
        with self._stop.shielded():
            if self.vitals is not None:
                self.vitals.close()
            super().close()


@contextmanager
def open_session(config: SessionConfig) -> Iterator[Session]:
    """Create the run directory and its journal, or go on with them; on the way out say how the run ended and close all.

    SIGTERM and Ctrl-C raise :class:`Stopped` inside the block, at once or where the run next stands between two epochs
    (see :class:`StopRequests`); both are written down. What is refused before anything was done leaves no directory.
    """
    journal: list[JournalWriter] = []

    def opened() -> RunDirectory:
        directory, writer = _resumed(config.resume) if config.resume is not None else _created(config)
        journal.append(writer)
        return directory

    directory = config.ranks.first(opened)

    def last_words(stopped: Stopped) -> None:
        session.say(T.TRAINING_ENDED, status=stopped.status, reason=str(stopped), **session.took)
        hub.close()

    stop = StopRequests(last_words)
    hub = SessionHub(stop, level=config.level, lifecycle_only=config.lifecycle_only)
    if config.resume is not None:
        hub.resume(config.resume.hub)
    for writer in journal:
        hub.add_sink(writer, name="journal")
    status, reason, refused = "completed", None, False
    session = Session(directory, hub, stop, config.resume, config.ranks)
    with stop:
        try:
            yield session
        except Stopped as error:
            status, reason = error.status, str(error)
            raise
        except KeyboardInterrupt:
            status, reason = "interrupted", "Ctrl-C"
            raise
        except BaseException as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
            if isinstance(error, RanksDiffer):
                session.note(T.RANKS_DIFFER, severity="error", ranks=error.ranks, what=error.what)
            refused = config.resume is None and session.untouched and isinstance(error, UsageError | DataError)
            raise
        finally:
            if status != "completed":
                stop.end()
            with stop.shielded():
                why = {} if reason is None else {"reason": reason}
                session.say(T.TRAINING_ENDED, status=status, **why, **session.took)
                hub.close()
                if refused and session.writes:
                    directory.discard()


def _created(config: SessionConfig) -> tuple[RunDirectory, JournalWriter]:
    where = Path(config.base) if config.run_dir is None else Path(config.run_dir).absolute()
    base, run_id = (where, None) if config.run_dir is None else (where.parent, where.name)
    together = {} if config.ranks.count == 1 else {"ranks": config.ranks.count}
    manifest = {"kind": config.kind, "pid": os.getpid(), **together, **config.manifest}
    directory = RunDirectory.create(base, run_id, manifest)
    return directory, JournalWriter(directory.path, run_id=directory.run_id)


def _resumed(point: ResumePoint) -> tuple[RunDirectory, JournalWriter]:
    directory = point.directory
    supersede = Supersede("train", point.hub["last_seq"], point.end)
    journal = JournalWriter(directory.path, run_id=directory.run_id, supersede=supersede)
    directory.sweep()
    checkpoint.sweep(directory.checkpoints)
    return directory, journal
