"""N envs driven by any number of workers as if by one.

    begin(specs) -> envs before their first epoch      step(decisions) -> envs after one      state() · load(state)

A :class:`WorkerPool` deals the envs out to workers. Each holds an :class:`EnvShard`: an executor of its own over its
envs, built by an :class:`EnvFactory`. Envs are independent of each other, so what they do does not depend on who drives
them; neither does what is said: events of one request come out ordered by env, in this process. A worker that is lost
is replaced, and its envs repeat their episode from its beginning, or from where it was loaded, with the same decisions.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import torch

from esper.leyline import (
    DataError,
    Decision,
    EnvCost,
    EnvSpec,
    EnvView,
    EsperError,
    Sink,
    TelemetryEvent,
    UsageError,
)
from esper.leyline import TelemetryEventType as T
from esper.run.assembly import build_paid, workload
from esper.run.config import CommonConfig
from esper.run.play import Episode
from esper.run.session import RUN
from esper.tasks import get_task
from esper.tolaria import tensor_file
from esper.tolaria.executor import EpisodeResult, Executor, StepReport
from esper.tolaria.nested import State
from esper.tolaria.rng import seed_process
from esper.tolaria.saved import SavedEnvs

MakeExecutor = Callable[[Sink], Executor]
"""An executor that sends its events to the given sink."""

PATIENCE: Final = 3
"""Workers that may be lost one after the other over one request; a fourth loss fails the run."""
SILENT_SECONDS: Final = 30.0
"""A worker that has not answered for so long is told of, and again each time that doubles; later where a request took
longer than a third of it before."""
_SLICE_SECONDS: Final = 0.2
"""Signals are heard this often while an answer is waited for."""


@dataclass(frozen=True, slots=True)
class EnvFactory:
    """All it takes to build the same hosts in any process. No episode looks at the test split."""

    config: CommonConfig
    digest: str
    """Of the task's data."""

    def __call__(self, emit: Sink) -> Executor:
        """Raises ``DataError`` where the task's data are others here."""
        torch.set_num_threads(self.config.threads)
        seed_process(self.config.seed)
        load = workload(get_task(self.config.task), self.config)
        if load.task.data.digest != self.digest:
            raise DataError(
                f"a worker's data of task {load.task.name!r} have the digest {load.task.data.digest}, "
                f"the learner's {self.digest}"
            )
        return build_paid(load, self.config, emit)


@dataclass(frozen=True, slots=True)
class ResetResult:
    """An env before its first epoch."""

    view: EnvView
    metric: float
    """Of validation, in the task's unit."""
    cost: EnvCost


@dataclass(frozen=True, slots=True)
class StepResult:
    """An env after an epoch. ``result`` is there after the last one, when the episode is over."""

    report: StepReport
    result: EpisodeResult | None
    cost: EnvCost


@dataclass(frozen=True, slots=True)
class PackedState:
    """A state as bytes and plain data, which travel anywhere."""

    tensors: bytes
    plain: Any

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> PackedState:
        """Copies."""
        return cls(b"".join(tensor_file.pieces(state["tensors"])), state["plain"])

    def state(self) -> State:
        """Undo of :meth:`of`."""
        return State(tensors=tensor_file.read(self.tensors), plain=self.plain)


@dataclass(frozen=True, slots=True)
class ResetRequest:
    """Start an episode of these envs. Answered by one :class:`ResetResult` each."""

    specs: tuple[EnvSpec, ...]


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One epoch. Answered by one :class:`StepResult` per env. What deciding took is per env."""

    decisions: tuple[Decision, ...]
    policy_seconds: float | None


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Be where an episode was saved. Answered by the envs' views."""

    state: PackedState


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """Answered by the envs' state, :class:`PackedState`."""


WorkerRequest = ResetRequest | StepRequest | LoadRequest | SaveRequest


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What a worker says to a request: a value or an error, the events on the way, its CPU seconds so far."""

    value: Any
    error: Exception | None
    events: tuple[TelemetryEvent, ...]
    cpu_seconds: float


class EnvShard:
    """The envs of one worker."""

    def __init__(self, make: MakeExecutor) -> None:
        """The executor is made with the first request, so that what is wrong with it is answered too."""
        self._make = make
        self._events: list[TelemetryEvent] = []
        self._executor: Executor | None = None
        self._episode: Episode | None = None

    @property
    def executor(self) -> Executor:
        """What drives the envs."""
        if self._executor is None:
            self._executor = self._make(self._events.append)
        return self._executor

    def answer(self, request: WorkerRequest) -> WorkerAnswer:
        """Do what is asked. Raises nothing: errors are answers."""
        value, error = None, None
        try:
            value = self._do(request)
        except Exception as raised:
            error = raised
        events = tuple(self._events)
        self._events.clear()
        return WorkerAnswer(value, error, events, time.process_time())

    def _do(self, request: WorkerRequest) -> Any:
        executor = self.executor
        match request:
            case ResetRequest(specs):
                self._episode = Episode.begin(executor, specs)
                metrics = executor.engine.evaluate(executor.envs, [({},) for _ in specs]).metric[:, 0]
                costs = executor.engine.costs(executor.envs)
                return [ResetResult(*env) for env in zip(self._episode.views, map(float, metrics), costs, strict=True)]
            case StepRequest():
                return self._step(request)
            case LoadRequest(packed):
                self._episode = Episode(executor, executor.load(packed.state()))
                return self._episode.views
            case SaveRequest():
                return PackedState.of(executor.state())

    def _step(self, request: StepRequest) -> list[StepResult]:
        executor, episode = self.executor, self._episode
        if episode is None:
            raise RuntimeError("a step was asked for, and no episode is under way")
        reports = episode.step(request.decisions, request.policy_seconds)
        results: Sequence[EpisodeResult | None] = episode.finish() if episode.over else [None] * len(reports)
        costs = executor.engine.costs(executor.envs)
        return [StepResult(*env) for env in zip(reports, results, costs, strict=True)]


def portable(answer: WorkerAnswer) -> WorkerAnswer:
    """The same with an error that survives a journey: a person's mistake as it is, a fault with its traceback."""
    error = answer.error
    if error is None:
        return answer
    for kind in (UsageError, DataError, EsperError):
        if isinstance(error, kind):
            return WorkerAnswer(None, kind(str(error)), answer.events, answer.cpu_seconds)
    told = RuntimeError("in a worker: " + "".join(traceback.format_exception(error)))
    return WorkerAnswer(None, told, answer.events, answer.cpu_seconds)


class WorkerLost(Exception):
    """There will be no answer. The message says why."""


class Worker(Protocol):
    """A share, wherever it is. Requests are answered in order, one at a time."""

    where: str
    """In words, with a number that tells it from others of its kind."""

    def ask(self, request: WorkerRequest) -> None:
        """Let it begin; a worker that is lost shows in :meth:`answer`."""

    def wait(self, seconds: float) -> bool:
        """Whether :meth:`answer` has something to say within so many seconds."""

    def answer(self) -> WorkerAnswer:
        """The answer to the last request. Raises :class:`WorkerLost`."""

    def condition(self) -> str:
        """Why it may be silent, in words; empty where nothing is known."""

    def close(self) -> None:
        """Let it go, whatever it is doing."""


class LocalWorker:
    """This process as a worker."""

    where = "this process"

    def __init__(self, share: EnvShard) -> None:
        self.share = share
        self._asked: WorkerRequest = SaveRequest()

    def ask(self, request: WorkerRequest) -> None:
        """The work is done in :meth:`answer`."""
        self._asked = request

    def wait(self, seconds: float) -> bool:
        """Nothing is waited for."""
        return True

    def condition(self) -> str:
        """It is never silent."""
        return ""

    def answer(self) -> WorkerAnswer:
        """Its CPU time is this process's own and is not counted twice."""
        answer = self.share.answer(self._asked)
        return WorkerAnswer(answer.value, answer.error, answer.events, 0.0)

    def close(self) -> None:
        """Nothing is held."""


V = TypeVar("V")


class WorkerPool:
    """Workers that drive envs as if they were one. It is closed by leaving it."""

    def __init__(
        self,
        hire: Callable[[], Worker],
        size: int,
        emit: Sink,
        *,
        timeout: float | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``hire`` starts a worker, ``size`` are wanted. Events go to ``emit``, lines about silent workers to ``tell``.

        A worker that has not answered after ``timeout`` seconds fails the run.
        """
        self.epoch = 0
        """Epochs that the episode under way has done."""
        self.shield: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around every moment of waiting: signals must not raise in it."""
        self._timeout, self._tell = timeout, tell
        self._longest = 0.0
        """Seconds that an answer took at most."""
        self._hire, self._emit = hire, emit
        self._workers = [hire() for _ in range(size)]
        self._past: list[list[WorkerRequest]] = [[] for _ in range(size)]
        """What each did since its episode began or was loaded, to be repeated should it be lost."""
        self._dealt = [range(0)] * size
        """Envs of each."""
        self._env_ids: list[int] = []
        self._cpu = [0.0] * size
        self._cpu_of_lost = 0.0

    @classmethod
    def here(cls, make: MakeExecutor, emit: Sink) -> WorkerPool:
        """This process and no other."""
        return cls(lambda: LocalWorker(EnvShard(make)), 1, emit)

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self._workers)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of other processes than this one, up to their last answers."""
        return self._cpu_of_lost + sum(self._cpu)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Those at work now."""
        return tuple(self._workers)

    def begin(self, specs: Sequence[EnvSpec]) -> list[ResetResult]:
        """Start an episode of ``specs``, all of one length."""
        self._deal(specs)
        self.epoch = 0
        return self._each(ResetResult, lambda envs: ResetRequest(tuple(specs[i] for i in envs)))

    def step(self, decisions: Sequence[Decision], policy_seconds: float | None = None) -> list[StepResult]:
        """One epoch of every env. ``policy_seconds`` is what deciding took, per env."""
        stepped = self._each(StepResult, lambda envs: StepRequest(tuple(decisions[i] for i in envs), policy_seconds))
        self.epoch += 1
        return stepped

    def state(self) -> State:
        """As :meth:`Executor.state`, however many workers there are."""
        return SavedEnvs.join(
            [SavedEnvs.of(packed.state()) for packed in self._ask(lambda envs: SaveRequest())]
        ).state()

    def load(self, state: Mapping[str, Any]) -> list[EnvView]:
        """Undo of :meth:`state`, with any number of workers. Returns the envs' views."""
        saved = SavedEnvs.of(state)
        self._deal(saved.specs)
        self.epoch = saved.epoch
        return self._each(EnvView, lambda envs: LoadRequest(PackedState.of(saved.take(envs).state())))

    def close(self) -> None:
        """Let all workers go."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deal(self, specs: Sequence[EnvSpec]) -> None:
        """Give every worker its envs, as even as can be. What it did before no longer matters."""
        envs, size = len(specs), self.size
        self._env_ids = [spec.env_id for spec in specs]
        self._dealt = [range(envs * k // size, envs * (k + 1) // size) for k in range(size)]
        self._past = [[] for _ in range(size)]

    def _each(self, of: type[V], request: Callable[[range], WorkerRequest]) -> list[V]:
        """Answers that hold one ``of`` per env, in the order of the envs."""
        return [env for answer in self._ask(request) for env in answer]

    def _ask(self, request: Callable[[range], WorkerRequest]) -> list[Any]:
        """Ask every worker that has envs; tell what they say; their answers. Raises the first error among them."""
        asked = {k: request(envs) for k, envs in enumerate(self._dealt) if envs}
        for k, each in asked.items():
            self._workers[k].ask(each)
        answers = {k: self._answer(k, each) for k, each in asked.items()}
        events = [event for answer in answers.values() for event in answer.events]
        for event in sorted(events, key=lambda event: -1 if event.env_id is None else event.env_id):
            self._emit(event)
        for k, answer in answers.items():
            if answer.error is not None:
                raise answer.error
            self._cpu[k] = answer.cpu_seconds
            # a saved state is read and changes nothing, so that a replacement need not repeat it
            if not isinstance(asked[k], SaveRequest):
                self._past[k].append(asked[k])
        return [answer.value for answer in answers.values()]

    def _answer(self, k: int, request: WorkerRequest) -> WorkerAnswer:
        """The answer of worker ``k``, or of who comes after it."""
        for _ in range(PATIENCE):
            try:
                return self._heard(k)
            except WorkerLost as lost:
                self._replace(k, str(lost), request)
        try:
            return self._heard(k)
        except WorkerLost as lost:
            raise EsperError(f"worker {k} was lost {PATIENCE + 1} times over one step: {lost}") from lost

    def _heard(self, k: int) -> WorkerAnswer:
        """The answer of worker ``k``. Raises :class:`WorkerLost`, and ``EsperError`` when it is waited for in vain."""
        worker, began, told_at = self._workers[k], time.monotonic(), max(SILENT_SECONDS, 3 * self._longest)
        limit = math.inf if self._timeout is None else self._timeout
        while True:
            with self.shield():
                there = worker.wait(min(_SLICE_SECONDS, limit))
            if there:
                answer = worker.answer()
                self._longest = max(self._longest, time.monotonic() - began)
                return answer
            silent = time.monotonic() - began
            if silent >= min(limit, told_at):
                env_ids = ", ".join(str(self._env_ids[env]) for env in self._dealt[k])
                why = f"; {condition}" if (condition := worker.condition()) else ""
                said = f"worker {k} ({worker.where}, environments {env_ids}) has not answered for {silent:.0f} s{why}"
                if silent >= limit:
                    raise EsperError(f"{said}; --workers-timeout {limit:g} is over")
                told_at *= 2
                self._tell(f"{said}; --workers-timeout SECONDS limits that")

    def _replace(self, k: int, reason: str, request: WorkerRequest) -> None:
        """Hire another, who repeats what is past without a word and is then asked again."""
        old, past = self._workers[k], self._past[k]
        epochs = sum(isinstance(done, StepRequest) for done in past)
        env_ids = [self._env_ids[env] for env in self._dealt[k]]
        data = {"worker": k, "where": old.where, "reason": reason, "environments": env_ids, "epochs_repeated": epochs}
        self._emit(TelemetryEvent(event_type=T.WORKER_REPLACED, producer=RUN, severity="warning", data=data))
        old.close()
        self._cpu_of_lost += self._cpu[k]
        self._cpu[k] = 0.0
        new = self._workers[k] = self._hire()
        # A worker's envs are a function of what it was asked since they were dealt (chance comes from named streams
        # of each env), so repeating that gives the same hosts bit for bit. The events that come with these answers were
        # told when the lost worker gave them; only those of the last request are new.
        for done in past:
            new.ask(done)
            try:
                answer = self._heard(k)
            except WorkerLost:
                break  # whoever waits for the next answer finds it lost as well
            if answer.error is not None:
                raise answer.error
        new.ask(request)
