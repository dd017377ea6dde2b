"""Opening a run. Every kind of run takes the same steps, in this order:

    find the past -> resolve the configuration -> threads -> chance -> workload        :func:`prepare`
    restore -> open directory and journal -> announce -> say what was resumed
            -> restore chance -> keep checkpoints                                      :func:`open_run`

Between the two each kind puts together what it runs. Whatever can be wrong is found before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from esper.kasmina.anatomy import host_record
from esper.leyline import UsageError
from esper.nissa.console import ConsoleSink
from esper.nissa.manifest import Setting
from esper.run.assembly import Workload, workload
from esper.run.config import CommonConfig, Resolved, default_of, resolve
from esper.run.resume import Checkpointer, CheckpointInfo, DeferredSink, ResumableRun, ResumeRequest, find, subject_of
from esper.run.session import Announcement, Session, SessionConfig, open_session
from esper.tasks import get_task
from esper.tolaria.nested import State
from esper.tolaria.ranks import present, require_one, require_same
from esper.tolaria.rng import seed_process

C = TypeVar("C", bound=CommonConfig)


@dataclass(frozen=True, slots=True)
class RunRequest(Generic[C]):
    """What a person asks for: a new run, or to go on with the run that was ``asked`` for."""

    kind: str
    of: type[C]
    flags: Mapping[str, Any]
    file: Mapping[str, Any] = field(default_factory=dict)
    asked: ResumeRequest | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task."""
    together: bool = False
    """Whether several processes may train the same hosts, each on its share of the examples."""


class Job(Protocol):
    """What runs. It can be saved wherever it calls ``on_boundary`` with the number of its step."""

    on_boundary: Callable[[int], None] | None

    def state(self) -> State:
        """All it takes to go on bit for bit."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`."""

    def least(self) -> dict[str, int]:
        """How small those settings may become by which the run can be made longer or shorter."""

    def remarks(self) -> Sequence[str]:
        """What keeps a resume from being exact, known beforehand."""


@dataclass(frozen=True, slots=True)
class RunOpening:
    """How :func:`open_run` opens a run. Events that are sent to ``sink`` go to it from then on."""

    session: SessionConfig
    what: Announcement
    sink: DeferredSink
    console: ConsoleSink | None = None
    about: CheckpointInfo | None = None
    """What checkpoints say; ``None`` where none is kept."""
    past: ResumableRun[Any] | None = None
    checkpoint_every: int = 0
    tell: Callable[[Sequence[str]], None] = lambda lines: None
    """Shows lines about a resume."""


@dataclass(frozen=True, slots=True)
class PreparedRun(Generic[C]):
    """A run that can be put together: with its configuration, its task and its past."""

    kind: str
    resolved: Resolved[C]
    load: Workload
    past: ResumableRun[C] | None
    sink: DeferredSink

    @property
    def config(self) -> C:
        """The resolved configuration."""
        return self.resolved.config

    def announcement(self, policy: str, episodes: int, envs: int) -> Announcement:
        """What is about to run."""
        task, host = self.load.task, self.load.task.host()
        sample = task.data.train.inputs[:2]
        return Announcement(
            task=task.name,
            policy=policy,
            metric=task.metric,
            slots=tuple(task.sites),
            blueprints=task.blueprints,
            episodes=episodes,
            envs=envs,
            max_epochs=self.load.max_epochs,
            device=self.load.device,
            examples={name: len(split) for name, split in task.data.splits().items()},
            host_parameters=sum(p.numel() for p in host.parameters()),
            host=host_record(host, task.sites, sample, len(sample)),
        )

    def session(self, settings: Mapping[str, Setting] | None = None) -> SessionConfig:
        """Where it writes, and what its manifest says: ``settings``, by default those that were resolved."""
        config, data = self.config, self.load.task.data
        return SessionConfig(
            kind=self.kind,
            run_dir=config.run_dir,
            level=config.telemetry_level,
            lifecycle_only=config.telemetry_lifecycle_only,
            manifest={
                "config": self.resolved.settings if settings is None else settings,
                "seeds": {"run": config.seed},
                "data": {"digest": data.digest, "source": data.source},
            },
            resume=None if self.past is None else self.past.point,
            ranks=self.load.ranks,
        )

    def opening(
        self,
        what: Announcement,
        console: ConsoleSink | None,
        tell: Callable[[Sequence[str]], None] = lambda lines: None,
    ) -> RunOpening:
        """Of a run that keeps checkpoints."""
        about = CheckpointInfo(self.kind, self.resolved.values, subject_of(self.load))
        every = self.config.checkpoint_every
        return RunOpening(self.session(), what, self.sink, console, about, self.past, every, tell)


def prepare(request: RunRequest[C]) -> PreparedRun[C]:
    """The first half. Raises ``UsageError`` or ``DataError`` for whatever is wrong with the request or the past."""
    if not request.together:
        require_one(f"esper train {request.kind}")
    ranks = present()
    of, given = request.of, {**request.file, **request.flags}
    past = None if request.asked is None else find(request.asked, request.kind, of, given, ranks)
    if past is None:
        (task,) = (each for each in of.__dataclass_fields__.values() if each.name == "task")
        preset = request.presets.get(str(given.get("task", default_of(task))))
        resolved = resolve(of, request.flags, request.file, preset)
    else:
        assert past.resolved is not None
        resolved = past.resolved
    config = resolved.config
    require_same(ranks, {f"--{name.replace('_', '-')}": value for name, value in resolved.values.items()})
    if config.stack and ranks.count > 1:
        raise UsageError(f"--stack trains hosts as one in one process; here are {ranks.count} that train together")
    torch.set_num_threads(config.threads)
    seed_process(config.seed)
    load = replace(workload(get_task(config.task), config), ranks=ranks)
    if past is not None:
        past.require(subject_of(load))
    return PreparedRun(request.kind, resolved, load, past, DeferredSink())


@contextmanager
def open_run(opening: RunOpening, job: Job | None = None) -> Iterator[Session]:
    """The second half; within, the run is open. A ``job`` is kept, and stopped where it can be resumed."""
    past = opening.past
    if past is not None and job is not None:
        past.restored(job.load)
        past.restore_chance()  # and again at the end: what is wrong with it is found before anything is written
    with open_session(opening.session) as session:
        if opening.console is not None:
            session.hub.add_sink(opening.console, name="console")
        session.announce(opening.session.kind, opening.what)
        opening.sink.open(session)
        if (threads := torch.get_num_threads()) > 1:
            opening.tell([f"{threads} threads: their sums differ in the last bits from those of 1"])
        if past is not None:
            past = past.on(session.gpus)
            if session.writes:
                past.say(session)
            opening.tell(past.lines())
            past.restore_chance()
        if job is None or opening.about is None:
            yield session
            return
        about = replace(opening.about, remarks=tuple(job.remarks()))
        checkpointer = Checkpointer(session, about, job.state, every=opening.checkpoint_every, least=job.least)
        job.on_boundary = checkpointer.boundary
        with session.stop.held():
            yield session
