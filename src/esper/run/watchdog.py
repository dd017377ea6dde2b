"""Ending a process whose main thread cannot be interrupted: it is in C code, in a lock, or hangs in its own ending.

Python runs a signal's handler between two instructions of the main thread, and a main thread that waits in C code comes
to none. Its C-level handler, though, writes every signal's number into a socket at once (``signal.set_wakeup_fd``); a
thread reads there. Code that keeps the interpreter's lock for itself cannot be helped: only SIGKILL ends it.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

GRACE_SECONDS: Final = 10.0
"""So long the main thread may take to begin to end once it was told to at once, and then to end."""
ON_ITS_WAY_SECONDS: Final = 1.0
"""So long an exception that a handler raised may be on its way."""
_LAST_WORDS_SECONDS: Final = 2.0


class Watchdog:
    """Hears signals while it is on watch, whatever the main thread does.

    The process is ended where two signals were heard and the main thread has not begun to end
    :data:`GRACE_SECONDS` after the second, and where one is heard so long after it has begun.
    """

    def __init__(
        self,
        numbers: Collection[int],
        begun: Callable[[], float | None],
        last_words: Callable[[int], None],
    ) -> None:
        """``begun`` gives the moment when the main thread last began to end; ``last_words`` has two seconds."""
        self._numbers, self._begun, self._last_words = frozenset(numbers), begun, last_words
        self._heard = 0
        self._deadline: float | None = None
        self._begun_when_armed: float | None = None
        self._number = 0
        self._ours, self._kernels = socket.socketpair()
        self._kernels.setblocking(False)
        self._before = signal.set_wakeup_fd(self._kernels.fileno(), warn_on_full_buffer=False)
        _on_watch.append(self)
        self._thread = threading.Thread(target=self._work, name="esper-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch."""
        signal.set_wakeup_fd(self._before)
        _on_watch.remove(self)
        self._kernels.close()
        self._thread.join()
        self._ours.close()

    def _work(self) -> None:
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if not select.select([self._ours], [], [], left)[0]:
                self._time_is_up()
                continue
            numbers = self._ours.recv(64)
            if not numbers:
                return
            if self._before != -1:
                with suppress(OSError):  # whoever listened before
                    os.write(self._before, numbers)
            for number in numbers:
                if number in self._numbers:
                    self._hear(number)

    def _hear(self, number: int) -> None:
        now, begun = time.monotonic(), self._begun()
        self._heard += 1
        self._number = number
        if self._deadline is not None:
            return
        if begun is None and self._heard > 1:
            self._arm(now + GRACE_SECONDS)
        elif begun is not None and now - begun > GRACE_SECONDS:
            self._arm(now + ON_ITS_WAY_SECONDS)

    def _arm(self, deadline: float) -> None:
        self._deadline, self._begun_when_armed = deadline, self._begun()

    def _time_is_up(self) -> None:
        self._deadline = None
        if self._begun() != self._begun_when_armed:
            return
        speaker = threading.Thread(target=self._last_words, args=(self._number,), daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_SECONDS)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + self._number)


_on_watch: list[Watchdog] = []


def _forked() -> None:
    """A child's signals are its own; the thread that would hear them has stayed behind."""
    if _on_watch:
        _on_watch.clear()
        with suppress(ValueError):  # forked by another thread than the main one
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forked)
