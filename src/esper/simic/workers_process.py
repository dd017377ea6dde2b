"""Workers that are processes on this machine, started afresh (not forked: threads and locks do not survive a fork)."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import Final

from esper.nissa.vitals import process_stat
from esper.simic.workers import EnvFactory, EnvShard, WorkerAnswer, WorkerLost, WorkerRequest, portable

_LAST_RITES: Final = 1.0
"""Seconds in which a process whose pipe is closed shows how it ended."""


class ProcessWorker:
    """A share in a process of its own, at the other end of a pipe; see :class:`~esper.simic.workers.Worker`."""

    def __init__(self, factory: EnvFactory) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, factory), name="esper worker", daemon=True)
        self.process.start()
        far_end.close()
        self.where = f"process {self.process.pid}"
        self._sender = Sender(self._pipe)
        # multiprocessing would wait at exit for a process that waits for its pipe
        self._end = Finalize(self, _end, (self.process, self._pipe, self._sender), exitpriority=1)

    def ask(self, request: WorkerRequest) -> None:
        """Send it."""
        self._sender.send(bytes(ForkingPickler.dumps(request)))

    def wait(self, seconds: float) -> bool:
        """Also true when the process has ended."""
        return self._pipe.poll(seconds)

    def condition(self) -> str:
        """Whether somebody has stopped the process, as far as ``/proc`` tells."""
        stat = None if self.process.pid is None else process_stat(self.process.pid)
        stopped = stat is not None and stat[0] in "tT"
        return "it was stopped (SIGSTOP); kill -CONT lets it go on" if stopped else ""

    def answer(self) -> WorkerAnswer:
        """Raises :class:`WorkerLost` when the process has ended."""
        try:
            answer: WorkerAnswer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(_LAST_RITES)
            raise WorkerLost(_how(self.process.exitcode)) from error
        return answer

    def close(self) -> None:
        """Kill it, idle or busy: it holds nothing that outlives it."""
        self._end()


class Sender:
    """Sends in a thread: a process that was stopped takes nothing, and what is too long for the pipe would wait."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._thread: threading.Thread | None = None

    def send(self, message: bytes) -> None:
        """Once what was sent before has gone."""
        self.join()
        self._thread = threading.Thread(target=self._send, args=(message,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until all has gone, or the pipe is broken."""
        if self._thread is not None:
            self._thread.join()

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # the loss shows where the answer is waited for
            self._pipe.send_bytes(message)


def _end(process: multiprocessing.process.BaseProcess, pipe: Connection, sender: Sender) -> None:
    process.kill()
    process.join()
    sender.join()
    pipe.close()


def _how(exitcode: int | None) -> str:
    if exitcode is None:
        return "closed its pipe"
    return f"killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with status {exitcode}"


def _serve(pipe: Connection, factory: EnvFactory) -> None:
    """Answer until the learner is gone. Signals that are meant for the whole group are the learner's to obey."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    share = EnvShard(factory)
    while True:
        try:
            request = pipe.recv()
        except (EOFError, OSError):
            return
        answer = portable(share.answer(request))
        try:
            pipe.send(answer)
        except OSError:
            return
