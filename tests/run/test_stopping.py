"""Signals stop a run at once, or where it waits for them."""

from __future__ import annotations

import os
import pty
import signal
import threading

import pytest

from esper.run import stopping
from esper.run.stopping import PATIENCE, Stopped, StopRequests

pytestmark = pytest.mark.signals


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted"), (signal.SIGHUP, "preempted")],
)
def test_a_signal_stops_at_once_where_nobody_waits_for_it(number: int, status: str) -> None:
    with StopRequests(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)
    assert (stopped.value.status, stopped.value.exit_code) == (status, 128 + number)


def test_where_it_is_held_the_first_is_noted_and_the_second_stops_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequests() as stop, stop.held():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(Stopped, match="Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == PATIENCE.decode()


def test_what_comes_right_after_it_is_not_heard_and_what_comes_later_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer, for one, swallows what is raised in it: the run must not be deaf from then on."""
    with StopRequests():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(stopping, "ON_ITS_WAY_SECONDS", 0.0)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_shielded_comes_to_its_end_first() -> None:
    done = []
    with StopRequests() as stop:
        with pytest.raises(Stopped), stop.shielded(), stop.shielded():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("all")
        with pytest.raises(OSError, match="full"), stop.shielded():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("full")
    assert done == ["all"]


def test_an_ending_is_not_cut_short() -> None:
    with StopRequests() as stop:
        stop.end()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)


def test_what_makes_do_without_what_failed_does_not_swallow_it() -> None:
    with StopRequests(), pytest.raises(Stopped):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Exception as error:
            pytest.fail(f"taken for a failure: {error}")


def test_handlers_are_put_back_and_a_shells_choice_to_ignore_ctrl_c_is_kept() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) is terminate


def test_nohup_stays() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_hung_up_is_told_nothing_more() -> None:
    """What is written to it would fail."""
    parent, terminal = pty.openpty()
    kept = [os.dup(1), os.dup(2)]
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    os.close(terminal)
    try:
        with StopRequests() as stop, stop.held():
            os.close(parent)
            with pytest.raises(OSError, match="Input/output"):
                os.write(1, b"lost")
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested == signal.SIGHUP
            assert os.write(1, b"nowhere") == os.write(2, b"nowhere") == 7
    finally:
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)


def test_outside_the_main_thread_there_are_no_signals() -> None:
    seen: list[StopRequests] = []

    def work() -> None:
        with StopRequests() as stop:
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0].requested is None
