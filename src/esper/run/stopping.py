"""SIGTERM, SIGHUP and Ctrl-C: at once, or where a run can be resumed from."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self

from esper.leyline import EsperError

PATIENCE: Final = b"\nesper: stopping when this epoch is over, with a checkpoint; once more stops at once\n"


class Stopped(EsperError):
    """A signal asked the run to stop. ``status`` goes into the ``TRAINING_ENDED`` event."""

    def __init__(self, number: int, message: str = "") -> None:
        interrupted = number == signal.SIGINT
        super().__init__(message or f"stopped by {'Ctrl-C' if interrupted else signal.Signals(number).name}")
        self.status = "interrupted" if interrupted else "preempted"
        self.exit_code = 128 + number


class StopRequests:
    """Takes SIGTERM, SIGINT and SIGHUP while it is entered.

    A signal raises :class:`Stopped` wherever the program is, except within :meth:`held`: there the first one is noted
    in ``requested``, for the run to stop where it can be resumed, and only the second raises. Where another handler
    than Python's own was set for SIGINT (a shell lets background jobs ignore it) or SIGHUP (``nohup`` ignores it) that
    one stays. Outside the main thread there are no signals, and nothing is done.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._holding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._take)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._take)
            if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
                self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the first signal waits for whoever looks at ``requested``."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go_of_terminal()
        if not self._holding or self.requested is not None:
            raise Stopped(number)
        self.requested = number
        os.write(2, PATIENCE)


def _let_go_of_terminal() -> None:
    """After a hang-up the terminal is gone, and whatever is told to it would fail: from now on that goes nowhere."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
