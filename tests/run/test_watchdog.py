"""A process whose main thread cannot be interrupted ends all the same when it is asked a second time."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cutting import in_child

from esper.leyline import TelemetryEventType as T
from esper.nissa.reader import read_journal
from esper.run import stopping, watchdog
from esper.run.session import Session, SessionConfig, open_session
from esper.run.stopping import Stopped, StopRequests

pytestmark = pytest.mark.signals


@pytest.fixture(autouse=True)
def little_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "_LAST_WORDS_SECONDS", 0.3)
    monkeypatch.setattr(watchdog, "ON_ITS_WAY_SECONDS", 0.1)
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 0.2)


def stuck() -> None:
    """Wait in C for ever: what a signal interrupts, and what it cannot."""
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def kicked(numbers: list[int], work: Callable[[], None], pause: float = 0.05) -> Callable[[], int]:
    """``work`` in a process that another one sends these signals once its run is open."""

    def run() -> int:
        target = os.getpid()
        if os.fork() == 0:
            os.read(is_open[0], 1)
            for number in numbers:
                time.sleep(pause)
                os.kill(target, number)
            os._exit(0)
        work()
        return 0

    return run


is_open = os.pipe()


def run_of(path: Path, work: Callable[[Session], None]) -> Callable[[], None]:
    def run() -> None:
        with open_session(SessionConfig("heuristic", str(path))) as session, session.stop.held():
            session.say(T.TELEMETRY_LEVEL_SET, level="normal", lifecycle_only=False, suppressed=[])
            os.write(is_open[1], b"1")
            work(session)

    return run


def ending(path: Path) -> list[tuple[str, str]]:
    events = list(read_journal(path))
    assert sum(event.event_type is T.TELEMETRY_LEVEL_SET for event in events) == 2
    return [(e.data["status"], e.data["reason"]) for e in events if e.event_type is T.TRAINING_ENDED]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "preempted"), (signal.SIGINT, "interrupted")])
def test_a_second_signal_ends_what_cannot_be_interrupted(number: int, status: str, tmp_path: Path) -> None:
    ended = in_child(kicked([number, number], run_of(tmp_path / "run", lambda session: stuck())), tmp_path / "log")
    assert ended.status == 128 + number
    assert "could not be interrupted; what was committed so far stays readable" in ended.said
    assert "Traceback" not in ended.said
    ((how, why),) = ending(tmp_path / "run")
    assert how == status and "could not be interrupted" in why


def test_one_that_holds_the_hub_loses_its_last_words_alone(tmp_path: Path) -> None:
    def deep_inside(session: Session) -> None:
        with session.hub._lock:
            stuck()

    ended = in_child(kicked([signal.SIGTERM] * 2, run_of(tmp_path / "run", deep_inside)), tmp_path / "log")
    assert ended.status == 128 + signal.SIGTERM
    assert not ending(tmp_path / "run")


def test_an_ending_that_hangs_is_ended_by_one_more(tmp_path: Path) -> None:
    def ends(session: Session) -> None:
        try:
            time.sleep(60)
        finally:
            stuck()

    signals = [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
    ended = in_child(kicked(signals, run_of(tmp_path / "run", ends), 0.4), tmp_path / "log")
    assert ended.status == 128 + signal.SIGINT
    assert [status for status, _ in ending(tmp_path / "run")] == ["interrupted"]


def test_one_that_ends_in_good_time_is_let_end(tmp_path: Path) -> None:
    """The mutant: a watchdog that does not look whether the end has begun cuts it short."""

    def ends(session: Session) -> None:
        try:
            time.sleep(60)
        except Stopped:
            time.sleep(0.6)
            raise

    def run() -> None:
        with pytest.raises(Stopped):
            run_of(tmp_path / "run", ends)()

    ended = in_child(kicked([signal.SIGTERM] * 2, run), tmp_path / "log")
    assert ended.status == 0, ended.said
    assert ending(tmp_path / "run") == [("preempted", "stopped by SIGTERM")]


def test_a_child_hears_its_own_signals_alone(tmp_path: Path) -> None:
    """A loader's processes are told to end again and again: that is not meant for the run."""

    def work() -> int:
        with StopRequests() as stop, stop.held():
            for _ in range(3):
                child = os.fork()
                if child == 0:
                    time.sleep(0.05)
                    signal.signal(signal.SIGTERM, lambda number, frame: None)
                    os.kill(os.getpid(), signal.SIGTERM)
                    os._exit(0)
                os.waitpid(child, 0)
            time.sleep(0.5)
            return 0 if stop.requested is None else 1

    assert in_child(work, tmp_path / "log").status == 0


def test_who_listened_before_goes_on_listening() -> None:
    ours, kernels = os.pipe()
    os.set_blocking(kernels, False)
    before = signal.set_wakeup_fd(kernels)
    try:
        with StopRequests() as stop, stop.held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert os.read(ours, 1) == bytes([signal.SIGTERM])
        assert signal.set_wakeup_fd(kernels) == kernels
    finally:
        signal.set_wakeup_fd(before)
        os.close(ours)
        os.close(kernels)
