"""One run from start to end: its directory, its hub and journal, its signals, and how it ended, as an event."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from esper.leyline import EsperError, Metric, TelemetryEvent
from esper.leyline import TelemetryEventType as T
from esper.nissa.hub import NissaHub
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory


class Terminated(EsperError):
    """SIGTERM arrived."""

    exit_code = 143


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Where a run writes and what it says."""

    kind: str
    run_dir: str | None = None
    """A directory that does not exist yet or is empty; ``None`` makes a fresh one below ``runs/``."""
    level: str = "normal"
    lifecycle_only: bool = False
    manifest: Mapping[str, Any] = field(default_factory=dict)


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


class Session:
    """An open run. ``emit`` takes events; ``directory`` is where everything goes."""

    def __init__(self, directory: RunDirectory, hub: NissaHub) -> None:
        self.directory = directory
        self.hub = hub
        self.started = time.perf_counter()

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    def emit(self, event: TelemetryEvent) -> None:
        """Send an event to every sink."""
        self.hub.emit(event)

    def announce(self, kind: str, what: Announcement) -> None:
        """Say what is about to run."""
        metric = {name: value for name, value in asdict(what.metric).items() if value is not None}
        plain = {**asdict(what), "slots": list(what.slots), "blueprints": list(what.blueprints), "metric": metric}
        threads = torch.get_num_threads()
        self.say(T.TRAINING_STARTED, run_id=self.directory.run_id, kind=kind, threads=threads, **plain)

    def say(self, event_type: T, **data: Any) -> None:
        """Send an event of the run itself."""
        self.hub.emit(TelemetryEvent(event_type=event_type, data=data))


@contextmanager
def open_session(config: SessionConfig) -> Iterator[Session]:
    """Create the run directory and its journal; on the way out say how the run ended and close everything.

    SIGTERM raises :class:`Terminated` inside the block, Ctrl-C ``KeyboardInterrupt``; both are written down.
    """
    where = Path("runs") if config.run_dir is None else Path(config.run_dir).absolute()
    base, run_id = (where, None) if config.run_dir is None else (where.parent, where.name)
    manifest = {"kind": config.kind, "pid": os.getpid(), **config.manifest}
    directory = RunDirectory.create(base, run_id, manifest)
    hub = NissaHub(level=config.level, lifecycle_only=config.lifecycle_only)
    hub.add_sink(JournalWriter(directory.path, run_id=directory.run_id), name="journal")
    session = Session(directory, hub)
    before = signal.signal(signal.SIGTERM, _terminate)
    status, reason = "completed", None
    try:
        yield session
    except KeyboardInterrupt:
        status, reason = "interrupted", "Ctrl-C"
        raise
    except Terminated as error:
        status, reason = "preempted", str(error)
        raise
    except BaseException as error:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        why = {} if reason is None else {"reason": reason}
        seconds = time.perf_counter() - session.started
        session.say(T.TRAINING_ENDED, status=status, **why, seconds=seconds, cpu_seconds=time.process_time())
        hub.close()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(f"terminated by {signal.Signals(number).name}")
