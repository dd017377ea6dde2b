"""Exact resume: a run saves itself where it stands between two epochs, and goes on from there bit for bit.

A checkpoint is written behind the journal: first everything said so far goes to the disk, then the checkpoint that
names the last event it belongs to. A resume opens a new segment of the journal, which takes back what was said after
that event; nothing that was committed is removed. Whatever can be wrong is found before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from esper._version import __version__
from esper.leyline import DataError, TelemetryEvent, UsageError, as_type, visible
from esper.leyline import TelemetryEventType as T
from esper.leyline.decoding import told
from esper.leyline.telemetry import Seq
from esper.nissa.journal import last_segment
from esper.nissa.levels import Level
from esper.nissa.reader import read_journal
from esper.nissa.rundir import RunDirectory
from esper.run import rank_shares
from esper.run.assembly import Workload
from esper.run.config import CommonConfig, Resolved, named_code, resolve
from esper.run.session import RUN, ResumePoint, Session
from esper.run.stopping import Stopped
from esper.tasks.chance import load_process, process_state
from esper.tolaria import checkpoint
from esper.tolaria.checkpoint import Loaded
from esper.tolaria.nested import State, join, split
from esper.tolaria.ranks import LONE, Ranks, require_same

KEPT: Final = 2
"""Checkpoints that stay: the newest, and one to fall back to should it be damaged."""

BATCHES: Final = "training batches"
"""In what a run is about, how many a rank takes in an epoch."""

LIBRARY: Final = "library"
"""Kind of the runs of ``grow`` and ``Grower``."""

SAFE: Final = frozenset(
    {
        "quiet",
        "telemetry_level",
        "telemetry_lifecycle_only",
        "checkpoint_every",
        "export",
        "threads",
        "workers",
        "workers_timeout",
    }
)
"""Settings that a resume may change: they change what is told and kept, not what is computed. The number of threads
changes the order of sums; the resume then says that it is not exact."""

MALFORMED: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What comes of loading a state that is not what it should be."""

_Took = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class _Hub(msgspec.Struct, frozen=True):
    """See :meth:`NissaHub.state`."""

    last_seq: Seq
    others: dict[str, Seq]
    sampled: dict[T, Seq]
    level: Level
    lifecycle_only: bool


class _Extra(msgspec.Struct, frozen=True):
    """What :class:`Snapshot` says about a run."""

    run_id: str
    config: dict[str, Any]
    subject: dict[str, Any]
    least: dict[str, Seq]
    remarks: list[str]
    hub: _Hub
    seconds: _Took
    cpu_seconds: _Took
    esper: str
    ranks: int = 1


C = TypeVar("C", bound=CommonConfig)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """What the command line says about resuming."""

    run: Path
    override: bool = False


@dataclass(frozen=True, slots=True)
class ResumableRun(Generic[C]):
    """A run that can be resumed, found whole. ``resolved`` is its configuration with what was overridden."""

    directory: RunDirectory
    loaded: Loaded
    resolved: Resolved[C] | None
    """``None`` for a run that is not configured by settings."""
    overrides: list[str]
    remarks: list[str]
    """What keeps the resume from being exact besides the machine."""
    end: tuple[int, int] | None
    """Where the journal ended before the checkpoint was looked for."""
    ranks: Ranks = LONE
    """Those that go on with it."""

    def on(self, gpus: Sequence[str]) -> ResumableRun[C]:
        """The same, as these go on with it, by rank."""
        return replace(self, loaded=replace(self.loaded, gpus=gpus))

    @property
    def point(self) -> ResumePoint:
        """For :class:`~esper.run.session.SessionConfig`."""
        extra = self.loaded.extra
        return ResumePoint(self.directory, extra["hub"], extra["seconds"], extra["cpu_seconds"], self.end)

    @property
    def differences(self) -> list[str]:
        """What keeps the resumed run from equalling the uninterrupted one bit for bit; empty when nothing does."""
        return [*self.loaded.differences, *self.remarks]

    def require(self, subject: Mapping[str, Any]) -> None:
        """Raises ``DataError`` where the run was about something else than ``subject`` (see :func:`subject_of`)."""
        saved = self.loaded.extra["subject"]
        for name in sorted({*saved, *subject}):
            if saved.get(name) != subject.get(name):
                raise DataError(
                    f"{self.directory.path} cannot be resumed here: its {name} is {saved.get(name)}, "
                    f"here it is {subject.get(name)}"
                )

    def restored(self, load: Callable[[State], R]) -> R:
        """What ``load`` makes of the saved state."""
        with self._whole():
            return load(self._parts()["run"])

    def restore_chance(self) -> None:
        """Put the process's random generators where they were; last of all, for setting up draws from them."""
        with self._whole():
            load_process(self._parts()["chance"])

    def _parts(self) -> dict[str, State]:
        parts = split(State(tensors=self.loaded.tensors, plain=self.loaded.plain))
        shares = parts.pop("ranks", None)
        if set(parts) != {"run", "chance"}:
            raise DataError(f"a saved run has the parts {', '.join(sorted(parts))}; run, chance are needed")
        return rank_shares.taken(self.ranks, parts, shares)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (*MALFORMED, MemoryError) as error:
            what = told(f"{type(error).__name__}: {error}")
            raise DataError(
                f"{self.loaded.path}: not a state that this Esper {__version__} can load: {what}"
            ) from error

    def say(self, session: Session) -> None:
        """Write down what is resumed, and from where."""
        optional = {"overrides": self.overrides, "passed_over": self.loaded.passed_over}
        payload = self.loaded.to_payload(self.loaded.extra["hub"]["last_seq"])
        payload |= {"exact": not self.differences} | {name: value for name, value in optional.items() if value}
        payload |= {"differences": self.differences} if self.differences else {}
        session.note(T.CHECKPOINT_LOADED, severity="warning" if self.differences else "info", **payload)
        self.directory.note_resume(self.loaded.extra["hub"]["last_seq"], self.overrides)

    def lines(self) -> list[str]:
        """The same for a person."""
        where = f"resumed after step {self.loaded.step} ({self.loaded.path})"
        told = [f"changed: {change}" for change in self.overrides]
        told += [f"passed over: {damage}" for damage in self.loaded.passed_over]
        if self.differences:
            lines = [f"{where}; not exact (not bit for bit), because of", *self.differences, *told]
        else:
            lines = [f"{where}; from here on it equals the uninterrupted run bit for bit", *told]
        return list(map(visible, lines))


def subject_of(load: Workload, **more: Any) -> dict[str, Any]:
    """What a run is about: a checkpoint can be resumed with this and nothing else. JSON-able."""
    task = load.task
    return {
        "task": task.name,
        "data digest": task.data.digest,
        "slots": {slot: str(path) for slot, path in task.sites.items()},
        "blueprints": list(task.blueprints),
        "epochs of an episode": load.max_epochs,
        "device": kind_of(load.device),
        **more,
    }


def kind_of(device: str) -> str:
    """``cuda`` for ``cuda:1``: which of a machine's devices it is changes nothing, and ranks have one each."""
    return device.partition(":")[0]


def find(
    asked: ResumeRequest, kind: str, of: type[C], given: Mapping[str, Any], ranks: Ranks = LONE
) -> ResumableRun[C]:
    """The run to resume, checked, by ``ranks``. ``given`` are settings that were given anew.

    Raises ``DataError`` for what is damaged or missing, ``UsageError`` for a run of another kind, one that is over, or
    settings that differ and must not. Writes nothing; a run that another process goes on with before this one has the
    lock of its journal is not gone on with here.
    """
    directory = RunDirectory.open(asked.run)
    found, ended = _found(directory, kind, lambda: checkpoint.load_newest(directory.checkpoints))
    extra = found.loaded.extra
    saved = resolve(of, {}, extra["config"])
    resolved = resolve(of, given, extra["config"])
    for name, value in named_code(resolved.values).items():
        if resolved.settings[name].source != "flag":
            raise UsageError(
                f"{found.loaded.path} names code, {name} {told(value)}: a resume imports it only where the command "
                f"line names it, too: {as_flag(name, value)}"
            )
    changes = {
        each.name: (before, after)
        for each in fields(of)
        if (before := getattr(saved.config, each.name)) != (after := getattr(resolved.config, each.name))
    }
    overrides = [f"{name}: {before} -> {after}" for name, (before, after) in sorted(changes.items())]
    if changes:
        _check_changes(asked, changes, overrides, extra["least"])
    if ended == "completed" and not set(changes) & set(extra["least"]):
        raise _completed(directory)
    return _among(replace(found, resolved=resolved, overrides=overrides), ranks)


def find_newest(run: Path, kind: str, subject: Mapping[str, Any], ranks: Ranks = LONE) -> ResumableRun[Any]:
    """The run to resume from its newest checkpoint, checked: of a kind that is told by its ``subject`` alone.

    Raises what :func:`find` raises.
    """
    directory = RunDirectory.open(run.absolute())
    found, ended = _found(directory, kind, lambda: checkpoint.load_newest(directory.checkpoints))
    if ended == "completed":
        raise _completed(directory)
    return _by_ranks(found, subject, ranks)


def find_state(
    loaded: Loaded, run: Path, kind: str, subject: Mapping[str, Any], ranks: Ranks = LONE
) -> ResumableRun[Any]:
    """The run to resume from a state that its user kept, checked; it may have been completed since.

    Raises what :func:`find` raises.
    """
    found, _ = _found(RunDirectory.open(run.absolute()), kind, lambda: loaded)
    return _by_ranks(found, subject, ranks)


def _by_ranks(found: ResumableRun[Any], subject: Mapping[str, Any], ranks: Ranks) -> ResumableRun[Any]:
    """The run of the ``subject`` as ``ranks`` go on with it."""
    if found.loaded.extra.get("ranks", 1) != ranks.count:
        # other shares of the examples are other batches
        subject = {**subject, BATCHES: found.loaded.extra["subject"].get(BATCHES)}
    found.require(subject)
    return _among(found, ranks)


def _among(found: ResumableRun[C], ranks: Ranks) -> ResumableRun[C]:
    """The run as ``ranks`` go on with it, which may be others than those that saved it."""
    require_same(ranks, {"the checkpoint": f"that of step {found.loaded.step}"})
    saved = found.loaded.extra.get("ranks", 1)
    others = [] if saved == ranks.count else [f"ranks: saved by {saved}, here {ranks.count}"]
    return replace(found, ranks=ranks, remarks=[*found.remarks, *others])


def _completed(directory: RunDirectory) -> UsageError:
    return UsageError(f"{directory.path}: the run is completed; there is nothing to resume")


def _found(directory: RunDirectory, kind: str, load: Callable[[], Loaded]) -> tuple[ResumableRun[Any], str | None]:
    """What can be known of a run and its checkpoint without its settings, and how it ended so far."""
    was = directory.manifest.details.get("kind")
    if was != kind:
        raise UsageError(f"{directory.path} is a run of {_command(was)}; this is {_command(kind)}")
    end = last_segment(directory.path)
    loaded = load()
    extra = as_type(loaded.extra, f"{loaded.path}: not what a run's checkpoint says", _Extra)
    if extra.run_id != directory.run_id:
        raise DataError(f"{loaded.path} belongs to run {extra.run_id!r}, not to {directory.run_id!r}")
    ended = _journal_end(directory.path, loaded)
    remarks = list(extra.remarks)
    if extra.esper != __version__:
        remarks.append(f"esper: saved with {extra.esper}, here {__version__}")
    return ResumableRun(directory, loaded, None, [], remarks, end), ended


def _command(kind: Any) -> str:
    return "grow or Grower" if kind == LIBRARY else f"esper train {kind}"


def as_flag(name: str, value: str) -> str:
    """A setting as the command line has it."""
    return f"--{name.replace('_', '-')} {value}"


def _check_changes(
    asked: ResumeRequest, changes: Mapping[str, tuple[Any, Any]], overrides: list[str], least: Mapping[str, int]
) -> None:
    listed = "; ".join(overrides)
    legal = ", ".join(sorted({*SAFE, *least}))
    if not asked.override:
        raise UsageError(
            f"the run to resume had other settings: {listed}. --override changes them, where that is safe: {legal}"
        )
    for name, (_, after) in changes.items():
        if name in least and after < least[name]:
            raise UsageError(f"{name} cannot become {after}: the run has come further; {least[name]} or more is legal")
        if name not in SAFE and name not in least:
            raise UsageError(
                f"{name} cannot change in a resumed run (asked for: {listed}); legal: {legal}. Start a new run instead"
            )


def _journal_end(path: Path, loaded: Loaded) -> str | None:
    """How the run ended so far, if it did. Raises ``DataError`` where the journal lacks what the checkpoint follows."""
    belongs = loaded.extra["hub"]["last_seq"]
    last, status = 0, None
    for event in read_journal(path):
        if event.producer == "train" and event.seq is not None:
            last = event.seq
        status = event.data.get("status") if event.event_type is T.TRAINING_ENDED else status
    if last < belongs:
        raise DataError(f"{path}: checkpoint {loaded.path.name} follows event {belongs}, the journal ends at {last}")
    return status


class DeferredSink:
    """Where a run's events go: nowhere before the run is open, for a state is loaded without a word. What is said of
    the run itself meanwhile waits.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._waiting: list[TelemetryEvent] = []

    def open(self, session: Session) -> None:
        """From now on events go to ``session``."""
        self._session = session
        for event in self._waiting:
            self.emit(event)

    def emit(self, event: TelemetryEvent) -> None:
        """Send an event on."""
        if self._session is None and event.producer == RUN:
            self._waiting.append(event)
            return
        if self._session is None:
            raise RuntimeError(f"{event.event_type.name} was emitted before the run was open")
        self._session.hub.emit(event)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What each checkpoint says about its run."""

    kind: str
    config: Mapping[str, Any]
    """name -> resolved value."""
    subject: Mapping[str, Any]
    remarks: tuple[str, ...] = ()
    """What keeps a resume from being exact, known beforehand."""
    how: str = "esper train {kind} --resume {run}{code} goes on"
    """What to do once it has stopped."""

    def to_go_on(self, run: Path) -> str:
        """The same for the run in that directory."""
        code = "".join(f" {as_flag(*named)}" for named in named_code(self.config).items())
        return self.how.format(kind=self.kind, run=str(run), code=code)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run where it stands: ``state`` to be loaded, ``extra`` about it, JSON-able, and the ``gpus`` it is on."""

    state: State
    extra: dict[str, Any]
    gpus: Sequence[str]

    @classmethod
    def of(cls, session: Session, about: CheckpointInfo, state: State, least: Mapping[str, int]) -> Snapshot:
        """Of what is now, behind the journal: everything said so far is on the disk."""
        session.hub.flush(barrier=True)
        ranks = session.ranks
        parts = {"run": rank_shares.whole(ranks, state), "chance": process_state()}
        if ranks.count > 1:
            parts["ranks"] = rank_shares.gathered(ranks, parts)
        extra = {
            "run_id": session.directory.run_id,
            "config": dict(about.config),
            "subject": dict(about.subject),
            "least": dict(least),
            "remarks": list(about.remarks),
            "hub": session.hub.state(),
            "seconds": session.seconds,
            "cpu_seconds": session.cpu_seconds,
            "esper": __version__,
            **({} if ranks.count == 1 else {"ranks": ranks.count}),
        }
        return cls(join(parts), extra, session.gpus)


class Checkpointer:
    """Saves a run every ``every`` steps, and when it was asked to stop. ``every`` 0 saves only then."""

    def __init__(
        self,
        session: Session,
        about: CheckpointInfo,
        state: Callable[[], State],
        *,
        every: int,
        least: Callable[[], dict[str, int]] = dict,
    ) -> None:
        """``least`` says how small those settings may become by which the run can be made longer or shorter."""
        self.session, self.about, self.every = session, about, every
        self._state, self._least = state, least

    def boundary(self, step: int) -> None:
        """Call it wherever the run can be resumed from. Raises :class:`Stopped` when a signal asked for it."""
        everyone = self.session.ranks.all(self.session.stop.requested, "end of an epoch")
        asked = next((each for each in everyone if each is not None), None)
        if asked is not None:
            self.save(step, "signal")
            message = str(Stopped(asked))
            raise self.session.stop.stopped(asked, f"{message}; {self.about.to_go_on(self.session.path)}")
        if self.every and step % self.every == 0:
            self.save(step, "scheduled")

    def save(self, step: int, reason: str) -> None:
        """Write a checkpoint of what is now, behind the journal. Raises ``DataError`` where that cannot be."""
        session = self.session
        shot = Snapshot.of(session, self.about, self._state(), self._least())
        if not session.writes:
            return
        where = session.directory.checkpoints
        state = shot.state
        saved = checkpoint.save(where, step, state["tensors"], state["plain"], shot.extra, keep=KEPT, gpus=shot.gpus)
        session.note(T.CHECKPOINT_SAVED, **saved.to_payload(reason, shot.extra["hub"]["last_seq"]))
