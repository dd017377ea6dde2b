from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from esper.karn.aggregator import fold
from esper.karn.notify import PENDING, TEXT, Alert, Outlet, Receiver, alert_of
from esper.karn.snapshot import build
from esper.karn.words import size
from esper.leyline import UsageError
from karn.receiver import receiving
from karn.test_verdict import BETTER, run_of

ALERT = Alert("run-1", ("failed",), "Esper: run-1: failed. <!channel> & @all", {"level": "critical"})
QUICK = (0.01, 0.01)


def delivered(plan: list[str], waits: tuple[float, ...] = QUICK, limit: float = 5.0) -> tuple[list[str], int]:
    """What was said, and how often the receiver was asked."""
    said: list[str] = []
    with receiving(*plan) as server:
        outlet = Outlet(Receiver(server.url, limit), said.append, waits)
        outlet.put(ALERT)
        outlet.close(20.0)
        assert all("SECRET" not in line for line in said), "what may be secret of an address is never printed"
        assert set(server.paths) == {"/hook/SECRET?key=SECRET"}, "nothing else was asked"
        return said, len(server.got)


def test_a_webhook_gets_json_that_slack_reads_and_in_which_nobody_is_called() -> None:
    with receiving("200") as server:
        assert Receiver(server.url).take(ALERT).problem == ""
        (got,) = server.got
    assert got["headers"]["Content-Type"].startswith("application/json")
    body = got["body"]
    assert (body["run"], body["kinds"], body["level"]) == ("run-1", ["failed"], "critical")
    assert body["text"] == "Esper: run-1: failed. &lt;!channel&gt; &amp; @\u200ball"
    assert body["mrkdwn"] is False and body["link_names"] is False


def test_a_receiver_that_fails_is_tried_again_and_each_time_is_told() -> None:
    said, asked = delivered(["500", "503 1", "200"], waits=(0.01, 0.01))
    assert asked == 3 and len(said) == 2
    assert "answers 500; try 2 of 3 in 0 s" in said[0] and "answers 503; try 3 of 3 in 1 s" in said[1]
    said, asked = delivered(["500"])
    assert asked == 3 and "given up after 3 of 3 tries" in said[-1] and "run-1: failed" in said[-1]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ("307", "answers 307, a redirect, which is not followed; given up after 1 of 3"),
        ("404", "answers 404; given up after 1 of 3"),
    ],
)
def test_what_trying_again_does_not_help_is_not_tried_again(plan: str, told: str) -> None:
    said, asked = delivered([plan])
    assert asked == 1 and len(said) == 1 and told in said[0]


@pytest.mark.parametrize("plan", ["hang", "drip"])
def test_one_that_never_answers_is_left_in_time(plan: str) -> None:
    said, asked = delivered([plan], waits=(), limit=2.0)
    assert asked == 1 and "no answer" in said[0]


def test_nobody_there() -> None:
    with receiving("200") as server:
        url = server.url
    tried = Receiver(url).take(ALERT)
    assert "refused" in tried.problem and tried.again


def test_a_password_in_the_address_is_a_header_and_not_said() -> None:
    with receiving("200") as server:
        receiver = Receiver(server.url.replace("//", "//me:hush%21@"))
        assert receiver.take(ALERT).problem == "" and "hush" not in receiver.name and "me" not in receiver.name
        assert server.got[0]["headers"]["Authorization"] == "Basic bWU6aHVzaCE="


def test_a_command_gets_the_text_and_the_facts(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read() + os.environ['ESPER_ALERT'])"
    )
    out = tmp_path / "out"
    assert Receiver(shlex.join([sys.executable, "-c", script, str(out)])).take(ALERT).problem == ""
    text, _, facts = out.read_text().partition("\n")
    assert text == ALERT.text and json.loads(facts)["kinds"] == ["failed"]
    tried = Receiver(shlex.join([sys.executable, "-c", "import sys; sys.exit('no such\\x1b[31m list')"])).take(ALERT)
    assert tried.problem == "it ended with status 1: no such\\x1b[31m list"


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    tried = Receiver(f"sh -c 'sleep 60 & echo $! > {out}; wait'", limit=3.0).take(ALERT)
    assert "took more than 3 s" in tried.problem
    child = int(out.read_text())
    end = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < end, "what it had started goes on"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "given",
    ["ftp://SECRET@host/x", "https://", "https://host/SECRET path", "http://host:99999/SECRET", "https://h\x1b/SECRET"],
)
def test_what_is_no_webhook_is_refused_without_being_repeated(given: str) -> None:
    with pytest.raises(UsageError, match="https://HOST") as problem:
        Receiver(given)
    assert "SECRET" not in str(problem.value)


@pytest.mark.parametrize("given", ["no-such-command-here --x", "", "'"])
def test_what_is_no_command_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--notify"):
        Receiver(given)


def test_more_than_can_wait_is_said() -> None:
    said: list[str] = []
    with receiving("hang") as server:
        outlet = Outlet(Receiver(server.url, 0.3), said.append, (60.0,))
        for _ in range(PENDING + 3):
            outlet.put(ALERT)
        assert sum("left out" in line for line in said) >= 2
        outlet.close(0.0)
    assert sum("not delivered" in line or "not tried again" in line or "given up" in line for line in said) >= PENDING


def test_the_words_are_the_verdicts() -> None:
    shot = build(fold(run_of(BETTER, status="failed", reason="<b>boom\x1b[31m</b>" + "x" * 9000)), 99.0)
    alert = alert_of("a\u202eb", ["failed"], shot)
    assert shot.verdict.headline in alert.about["headline"] and len(alert.text) <= TEXT
    assert "\x1b" not in alert.text and "\u202e" not in alert.text and "<b>boom" in alert.text
    ended = alert_of("r", ["ended"], build(fold(run_of(BETTER)), 99.0))
    assert ended.text.startswith("Esper: r (digits): ended. Better than its control static by")
    assert "result: heuristic 91.2 ±" in ended.text and "next: esper bench" in ended.text


def test_sizes() -> None:
    said = [size(count) for count in (0, 999, 1000, 15_500, 999_600_000, 3.42e9, 2e12)]
    assert said == ["0 B", "999 B", "1.00 kB", "15.5 kB", "1000 MB", "3.42 GB", "2.00 TB"]
