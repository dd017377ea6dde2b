"""Alerts to a person who is not looking, in the words of the verdict: by webhook or by a command.

Made where a run is watched, never where it is trained. An alert that does not arrive is tried again, ever later; how
that goes is said in the terminal, without what may be secret of where it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from esper.karn.schema import Snapshot
from esper.karn.verdict import lines
from esper.karn.words import cut, duration
from esper.leyline import UsageError, visible

LIMIT: Final = 15.0
"""Seconds that one try may take, whatever the other side does."""
WAITS: Final = (2.0, 10.0, 60.0, 300.0)
"""Seconds before each further try."""
LATER: Final = 900.0
"""Most seconds that an answer may put a try off."""
PENDING: Final = 100
"""Alerts that wait for one receiver; of more, the newest are left out, and that is said."""
TEXT: Final = 2000
"""Characters of an alert's text: what a chat shows."""
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Alert:
    """One message. ``kinds`` are those of :data:`esper.karn.judge.TELL`."""

    run: str
    kinds: tuple[str, ...]
    text: str
    about: Mapping[str, Any]
    """What a program reads: verdict, state, what to type next."""

    def body(self) -> bytes:
        """JSON of a webhook. Slack, Mattermost and Discord's ``/slack`` read ``text``; a run's words in it are no
        markup and call nobody.
        """
        text = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")
        return json.dumps({"text": text, "mrkdwn": False, "link_names": False, **self.facts()}).encode()

    def facts(self) -> dict[str, Any]:
        """What a command finds in ``ESPER_ALERT``."""
        return {"run": self.run, "kinds": list(self.kinds), **self.about}


def alert_of(run: str, kinds: Sequence[str], snapshot: Snapshot) -> Alert:
    """The alert that a run became ``kinds``."""
    header, verdict = snapshot.run, snapshot.verdict
    task = f" ({visible(header.task)})" if header.task else ""
    told = [f"Esper: {visible(run)}{task}: {', '.join(kinds)}. {verdict.headline}."]
    told += [f"{about}: {text}" for about, text in lines(verdict) if about in ("result", "next")]
    text = "\n".join(told)
    about = {
        "task": header.task,
        "policy": header.policy,
        "state": header.state,
        "level": verdict.level,
        "headline": verdict.headline,
        "findings": [{"about": one.about, "text": one.text, "level": one.level} for one in verdict.findings],
        "command": verdict.command,
        "why": verdict.why,
        "time": snapshot.clock.now,
    }
    known = {name: value for name, value in about.items() if value is not None}
    return Alert(run, tuple(kinds), cut(text, TEXT), known)


@dataclass(frozen=True, slots=True)
class Tried:
    """How a try went: ``problem`` is empty where it arrived, ``again`` whether trying again may help."""

    problem: str = ""
    again: bool = True
    later: float = 0.0
    """Seconds that the receiver asked to be left alone for."""


class Receiver:
    """Where alerts go: a webhook, or a command that gets the text on its standard input."""

    def __init__(self, given: str, limit: float = LIMIT) -> None:
        """Raises ``UsageError`` for what is neither, without repeating what may be secret in it."""
        self._limit = limit
        self._url = _checked(given) if re.match(r"[a-z][a-z0-9+.-]*://", given, re.IGNORECASE) else None
        self._command = [] if self._url is not None else _words(given)
        self.name = _place(given) if self._url is not None else f"the command {self._command[0]}"
        """What it is called in the terminal: of a URL no user, path or query."""

    def take(self, alert: Alert) -> Tried:
        """Hand ``alert`` over; returns within the limit."""
        return self._post(alert) if self._url is not None else self._call(alert)

    def _post(self, alert: Alert) -> Tried:
        asked = {"url": self._url, "body": alert.body().decode(), "seconds": self._limit}
        status, said, _ = _run([sys.executable, "-m", "esper.karn.post"], json.dumps(asked), {}, self._limit + 1.0)
        if status is None:
            return Tried(f"no answer within {self._limit:g} s")
        try:
            answer = json.loads(said)
        except ValueError:
            return Tried("it could not be sent")
        if "problem" in answer:
            return Tried(str(answer["problem"]))
        code = int(answer["status"])
        if 200 <= code < 300:
            return Tried()
        if 300 <= code < 400:
            return Tried(f"it answers {code}, a redirect, which is not followed", again=False)
        return Tried(f"it answers {code}", code >= 500 or code in (408, 425, 429), min(answer.get("later", 0), LATER))

    def _call(self, alert: Alert) -> Tried:
        extra = {"ESPER_ALERT": json.dumps(alert.facts())}
        status, _, wrong = _run(self._command, f"{alert.text}\n", extra, self._limit)
        if status is None:
            return Tried(f"it took more than {self._limit:g} s and was ended")
        last = visible(wrong.strip().splitlines()[-1][:200]) if wrong.strip() else ""
        return Tried() if status == 0 else Tried(f"it ended with status {status}{f': {last}' if last else ''}")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known or _CONTROL.search(url) or not url.isascii():
        raise UsageError("--notify: a webhook is http://HOST/... or https://HOST/..., in ASCII and without blanks")
    return url


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as problem:
        raise UsageError(f"--notify: the command cannot be read: {problem}") from None
    if not words or shutil.which(words[0]) is None:
        what = repr(words[0][:80]) if words else "nothing"
        raise UsageError(f"--notify: {what} is neither a webhook (https://...) nor a command that is found here")
    return words


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def _run(command: Sequence[str], said: str, extra: Mapping[str, str], limit: float) -> tuple[int | None, str, str]:
    """Status, output and errors of a command; no status where it had to be ended, with all that it had started."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as wrong, tempfile.TemporaryFile() as given:
        given.write(said.encode(errors="replace"))
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=out, stderr=wrong, env={**os.environ, **extra}, start_new_session=True
            )
        except OSError as problem:
            return 126, "", problem.strerror or type(problem).__name__
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return status, _head(out), _head(wrong)


def _head(file: Any) -> str:
    file.seek(0)
    return str(file.read(1 << 16).decode(errors="replace"))


class Outlet:
    """Delivers alerts to one receiver, one after the other, from a thread of its own."""

    def __init__(self, receiver: Receiver, say: Say, waits: Sequence[float] = WAITS) -> None:
        self._receiver, self._say, self._waits = receiver, say, waits
        self._queue: queue.Queue[Alert | None] = queue.Queue(PENDING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=receiver.name, daemon=True)
        self._thread.start()

    def put(self, alert: Alert) -> None:
        """Take an alert; never waits."""
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self._say(f"{PENDING} alerts wait for {self._receiver.name}; left out: {alert.text}")

    def close(self, patience: float) -> None:
        """Return once all is delivered or given up, or after ``patience`` seconds; what is left then is said."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=patience)
        self._thread.join(patience)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(LIMIT + 2.0)
        while not self._queue.empty():
            alert = self._queue.get_nowait()
            if alert is not None:
                self._say(f"not delivered to {self._receiver.name}: {alert.text}")

    def _work(self) -> None:
        while (alert := self._queue.get()) is not None:
            self._deliver(alert)
            if self._stop.is_set():
                return

    def _deliver(self, alert: Alert) -> None:
        name, tries = self._receiver.name, len(self._waits) + 1
        for number, wait in enumerate((*self._waits, None), 1):
            tried = self._receiver.take(alert)
            if not tried.problem:
                return
            told = f"an alert did not reach {name}: {tried.problem}"
            if not tried.again or wait is None or self._stop.is_set():
                self._say(f"{told}; given up after {number} of {tries} tries. It said: {alert.text}")
                return
            wait = max(wait, tried.later)
            self._say(f"{told}; try {number + 1} of {tries} in {duration(wait)}")
            if self._stop.wait(wait):
                self._say(f"{told}; not tried again, since Overwatch ends. It said: {alert.text}")
                return


def receivers(given: Iterable[str]) -> list[Receiver]:
    """Those that were named, each once. Raises ``UsageError``."""
    return [Receiver(one) for one in dict.fromkeys(given)]
