"""Signals stop a run at once, or where it waits for them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from esper.run.stopping import PATIENCE, Stopped, StopRequests

pytestmark = pytest.mark.signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "preempted")])
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


def test_outside_the_main_thread_there_are_no_signals() -> None:
    seen: list[StopRequests] = []

    def work() -> None:
        with StopRequests() as stop:
            seen.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0].requested is None
