"""Runs in forked children, so that torch is imported once: whole, or cut at a chosen point of their work."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from forking import fork

PACKAGE = f"{os.sep}esper{os.sep}"


@dataclass(frozen=True)
class Cut:
    """Send ``signal`` at the ``nth`` call of a function of Esper: of any, or of the one that is named."""

    nth: int
    signal: int = signal.SIGKILL
    function: str | None = None
    """``module.function``, the module without its package."""

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name} at call {self.nth} of {self.function or 'any function'}"


class CallCounter:
    """Counts calls of functions of Esper on the main thread: the same ones at the same counts, however slow the
    machine is."""

    def __init__(self, cut: Cut | None) -> None:
        self.calls = 0
        self.by_function: dict[str, list[int]] = {}
        self._cut = cut

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or PACKAGE not in code.co_filename:
            return
        self.calls += 1
        name = f"{Path(code.co_filename).stem}.{code.co_name}"
        places = self.by_function.setdefault(name, [])
        places.append(self.calls)
        cut = self._cut
        if cut is not None and (len(places) if cut.function else self.calls) == cut.nth:
            if cut.function is None or cut.function == name:
                os.kill(os.getpid(), cut.signal)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, negative for a signal, and what it wrote."""

    status: int
    said: str


def in_child(work: Callable[[], int], log: Path) -> Ended:
    """Run ``work`` in a forked child; what it returns is the exit status."""
    child = fork()
    if child == 0:
        status = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, how = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(how), log.read_text())


def run(arguments: Sequence[str], log: Path, cut: Cut | None = None) -> Ended:
    """``esper ARGUMENTS`` in a child that is cut at ``cut``."""

    def work() -> int:
        from esper.scripts.main import main

        if cut is not None:
            sys.setprofile(CallCounter(cut))
        return main(list(arguments))

    return in_child(work, log)


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run, its command, and the calls that it took."""

    command: list[str]
    path: Path
    calls: CallCounter

    @classmethod
    def of(cls, command: list[str], folder: Path) -> Whole:
        """Run ``command`` in ``folder``."""
        path = folder / "run"
        return cls(command, path, count_calls([*command, "--run-dir", str(path)], folder / "log"))

    @property
    def first_checkpoint(self) -> int:
        """The call after which there is a checkpoint."""
        return self.calls.by_function["checkpoint._delete_old"][0]

    @property
    def end(self) -> int:
        """The call with which training was over."""
        return self.calls.by_function["hub.close"][-1]

    def anywhere(self, number: int) -> int:
        """A call between the two, drawn by lot."""
        return random.Random(number).randrange(self.first_checkpoint, self.end)

    def cut_and_resume(self, cuts: Sequence[Cut], folder: Path) -> Path:
        """The same run, cut at each of ``cuts`` and resumed each time."""
        path, log = folder / "run", folder / "log"
        ended = run([*self.command, "--run-dir", str(path)], log, cuts[0])
        number = signal.Signals(cuts[0].signal)
        assert ended.status == (-9 if number == signal.SIGKILL else 128 + number), (str(cuts[0]), ended)
        for cut in (*cuts[1:], None):
            ended = run([*self.command[:4], "--resume", str(path)], log, cut)
            assert ended.status == (0 if cut is None else -9), (str(cut), ended)
        return path


def count_calls(arguments: Sequence[str], log: Path) -> CallCounter:
    """An uncut run's calls, in this process's memory."""
    out = log.with_suffix(".json")

    def work() -> int:
        from esper.scripts.main import main

        counter = CallCounter(None)
        sys.setprofile(counter)
        status = main(list(arguments))
        sys.setprofile(None)
        out.write_text(json.dumps({"calls": counter.calls, "by_function": counter.by_function}))
        return status

    ended = in_child(work, log)
    assert ended.status == 0, ended.said
    counter = CallCounter(None)
    saved = json.loads(out.read_text())
    counter.calls, counter.by_function = saved["calls"], saved["by_function"]
    return counter
