"""SIGTERM, SIGHUP and Ctrl-C: at once, or where a run can be resumed from."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Final, Self

from esper.run.watchdog import GRACE_SECONDS, ON_ITS_WAY_SECONDS, Watchdog

PATIENCE: Final = b"\nesper: stopping when this epoch is over, with a checkpoint; once more stops at once\n"


class Stopped(BaseException):
    """A signal asked the run to stop. ``status`` goes into the ``TRAINING_ENDED`` event.

    No ``Exception``: it strikes anywhere, and nothing that makes do without what failed may take it for that failure.
    """

    def __init__(self, number: int, message: str = "") -> None:
        interrupted = number == signal.SIGINT
        super().__init__(message or f"stopped by {'Ctrl-C' if interrupted else signal.Signals(number).name}")
        self.status = "interrupted" if interrupted else "preempted"
        self.exit_code = 128 + number


class StopRequests:
    """Takes SIGTERM, SIGINT and SIGHUP while it is entered.

    A signal raises :class:`Stopped` wherever the program is, except within :meth:`held`: there the first one is noted
    in ``requested``, for the run to stop where it can be resumed, and only the second raises. Within :meth:`shielded`
    none raises before its end. A run that ends for a signal is not cut short by more of them. Where another handler
    than Python's own was set for SIGINT (a shell lets background jobs ignore it) or SIGHUP (``nohup`` ignores it) that
    one stays. Outside the main thread there are no signals, and nothing is done.

    Where the main thread cannot be made to raise, a second signal ends the process all the same
    (:class:`~esper.run.watchdog.Watchdog`), with ``last_words`` said before.
    """

    def __init__(self, last_words: Callable[[Stopped], None] = lambda stopped: None) -> None:
        self.requested: int | None = None
        self._holding = False
        self._shields = 0
        self._waiting: int | None = None
        """A signal that raises when the shield is down."""
        self._raised_at: float | None = None
        self._ending = False
        self._begun: float | None = None
        """When the main thread last began to end."""
        self._before: dict[int, Any] = {}
        self._last_words = last_words
        self._watchdog: Watchdog | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            taken = [signal.SIGTERM]
            taken += [signal.SIGINT] * (signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _interrupt))
            taken += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)
            self._watchdog = Watchdog(taken, lambda: self._begun, self._force)
            for number in taken:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if handler is _interrupt and isinstance(error, Stopped):
                signal.signal(number, signal.SIG_IGN)
                _end_by_then(GRACE_SECONDS, error.exit_code)
            else:
                signal.signal(number, handler)
        self._before.clear()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the first signal waits for whoever looks at ``requested``."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Within, nothing is cut short: a signal raises at the end, unless an error is on its way already."""
        if not self._before or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._waiting is not None and not self._shields and not self._ending:
            raise self.stopped(self._waiting)

    def stopped(self, number: int, message: str = "") -> Stopped:
        """What to raise for a signal: those that come right after it are not heard."""
        self._raised_at = self._begun = time.monotonic()
        self._waiting = None
        return Stopped(number, message)

    def end(self) -> None:
        """The run is ending for a signal or a failure: from now on none is heard, but by the watchdog."""
        self._ending = True
        self._begun = time.monotonic()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go_of_terminal()
        if self._ending or _just_now(self._raised_at):
            return
        if self._holding and self.requested is None:
            self.requested = number
            with suppress(OSError):
                os.write(2, PATIENCE)
        elif self._shields:
            self._waiting = number
        else:
            raise self.stopped(number)

    def _force(self, number: int) -> None:
        """In the watchdog's thread: say what is happening, then what the run has to say."""
        stopped = Stopped(number)
        stopped = Stopped(number, f"{stopped}, in the midst of what could not be interrupted")
        self._last_words(stopped)
        with suppress(OSError):
            os.write(2, f"\nesper: {stopped}; what was committed so far stays readable\n".encode())


def as_program(run: Callable[[], int]) -> int:
    """``run`` in a process that is nothing else, and ends with it: Ctrl-C raises ``KeyboardInterrupt`` once, and never
    while the process ends."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return run()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return run()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_by_then(seconds: float, status: int) -> None:
    """End the process if it is still there after so many seconds: Ctrl-C is not heard any more."""
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


_interrupted_at: list[float] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _interrupted_at or not _just_now(_interrupted_at[-1]):
        _interrupted_at.append(time.monotonic())
        raise KeyboardInterrupt


def _just_now(moment: float | None) -> bool:
    """Whether an exception that was raised at ``moment`` may still be on its way. Later it must have been swallowed,
    as one in a finalizer is."""
    return moment is not None and time.monotonic() - moment < ON_ITS_WAY_SECONDS


def _let_go_of_terminal() -> None:
    """After a hang-up the terminal is gone, and whatever is told to it would fail: from now on that goes nowhere."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
