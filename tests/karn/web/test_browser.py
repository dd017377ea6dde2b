"""The page in a headless Chromium, live and in replay. Pictures go to ``artifacts/overwatch``."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from esper.karn.web import assets
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn import demo
from karn.journals import write_run
from karn.streams import story
from karn.web.browser import ARTIFACTS, ROOT, Browser, launched, missing
from karn.web.serve import serving

LACKING = missing()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(LACKING is not None and os.environ.get("CI") != "true", reason=str(LACKING)),
]

VIEWS = {
    "flight": "#/flight",
    "environment": f"#/flight?env={demo.BLOCKED}&seed=e{demo.BLOCKED}-stem-1",
    "events": f"#/events?filter=env%3D{demo.BROKEN}",
    "governor": "#/governor",
    "compare": "#/compare",
    "leaders": "#/leaders",
    "replay": f"#/flight?at=700&env={demo.BROKEN}",
}
READY = {
    "flight": "[role=option]",
    "environment": "[data-blocked=yes]",
    "events": ".view .text",
    "governor": ".view .text",
    "compare": ".view tbody td.num",
    "leaders": ".view tbody td.num",
    "replay": "footer.replay",
}
"""View -> what is there once it is drawn."""
DIALOGS = {"help": "?", "export": "x"}
STATES = {"empty": "No environment has spoken yet", "damaged": "journal damaged at byte"}
"""Run -> what the page says of it."""
LOOKS = [
    ("dark", 1280),
    pytest.param("light", 390, marks=pytest.mark.slow),
    pytest.param("light", 1280, marks=pytest.mark.slow),
    pytest.param("dark", 390, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if LACKING is not None:
        pytest.fail(LACKING)
    if assets.state() != "ready":
        assets.build(print)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, whole and ended, beside a short older run, in ``esper overwatch`` as a person starts it."""
    base = tmp_path_factory.mktemp("finished")
    parts = list(demo.epochs(count=46, start=time.time() - 92))
    for name, events in (("20250101-short", story()), ("20260101-demo", [event for part in parts for event in part])):
        write_run(base / "runs", events, run_id=name)
    command = [sys.executable, "-m", "esper.scripts.main", "overwatch", str(base / "runs"), "--port", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(base / "cache"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split(" ", 1)[1].strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(15)
        process.stdout.close()


def go(browser: Browser, link: str, place: str = "#/flight", **size: Any) -> None:
    """Open the page at a place and wait for its first frame."""
    browser.open(url=link, **size)
    browser.wait(selector=".state")
    turn(browser, place)


def turn(browser: Browser, place: str) -> None:
    """Follow a link within the page."""
    browser.eval(code=f"location.hash = {place!r}")


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What ``condition`` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.1)
    return found


def rows(browser: Browser) -> list[str]:
    return list(browser.texts(selector="[role=option]"))


def test_the_stalled_environment_rises_to_the_top_with_its_reason(browser: Browser, tmp_path: Path) -> None:
    """Live: at first it is somewhere in the list, then first, because of the one thing that is wrong with it."""
    run = RunDirectory.create(tmp_path, "live", {})
    parts = demo.epochs(count=40, start=time.time())
    with JournalWriter(run.path, "live") as writer:

        def write(some: int) -> None:
            for _ in range(some):
                for event in next(parts):
                    if event.env_id not in (demo.FALLING, demo.BROKEN):
                        writer(event)
            writer.flush()

        write(3)
        with serving(run.path, tmp_path / "cache") as listening:
            go(browser, listening.link)
            until(lambda: len(rows(browser)) == 10)
            assert f"environment {demo.STALLED}," not in rows(browser)[0]
            write(36)
            first = until(lambda: (top := rows(browser)[0]).startswith(f"environment {demo.STALLED},") and top)
            assert ", watch, score 0." in first and "no better metric for" in first
            browser.shot(path=str(ARTIFACTS / "stalled.png"))


class Clock:
    """The wall clock, and what a test adds to it."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_a_killed_writer_is_no_contact_and_not_an_end(browser: Browser, tmp_path: Path, scheme: str) -> None:
    run, clock = tmp_path / "killed", Clock()
    writer = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "karn" / "demo.py"), str(run), "--pace", "0.1", "--epochs", "5000"]
    )
    try:
        until(lambda: (run / "run.json").is_file() and any(run.glob("events-*.jsonl")))
        with serving(run, tmp_path / "cache", clock=clock) as listening:
            go(browser, listening.link, scheme=scheme)
            until(lambda: "running" in browser.text(selector=".state"))
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
            clock.ahead = 41.0  # nobody needs to sit through the silence itself
            until(lambda: "no event for" in browser.text(selector=".state"))
            notices = browser.text(selector="[aria-label=Notices]")
            assert "No contact with the run" in notices and "has not said that it ended" in notices
            assert "ended" not in browser.text(selector=".state")
            assert "old" in browser.text(selector="footer .mode")
            browser.shot(path=str(ARTIFACTS / f"no-contact-{scheme}.png"))
            assert browser.axe() == []
    finally:
        writer.kill()
        writer.wait()


def test_a_gone_server_is_said_within_seconds(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path, story(), run_id="gone")
    with serving(run, tmp_path / "cache") as listening:
        go(browser, listening.link)
        until(lambda: rows(browser))
    until(lambda: "No contact with Overwatch" in browser.text(selector="[aria-label=Notices]"), 8)
    assert "as of" in browser.text(selector="[aria-label=Notices]")


def test_the_inspector_names_the_failing_check_with_value_and_threshold(browser: Browser, finished: str) -> None:
    go(browser, finished, f"#/flight?env={demo.BLOCKED}")
    browser.wait(selector="aside .chip")
    browser.press(key="Enter")
    browser.wait(selector="[data-blocked=yes]")
    why = browser.text(selector="[data-blocked=yes]")
    assert "G5 keeps it from FOSSILIZED" in why and "removal cost 0.31 points, needs >= 0.5" in why
    failed = browser.text(selector="[data-gate=G5] tr.failed")
    assert failed.split("\t") == ["removal cost", "0.310 points", ">= 0.5", "✕ fails"]
    assert "not measured" in browser.text(selector="[data-gate=G2]") or "G2 passed" in browser.text(
        selector="[data-gate=G2]"
    )
    browser.press(key="Escape")
    browser.wait(selector="[data-blocked=yes]", state="detached")
    browser.press(key="Escape")
    browser.wait(selector="aside", state="detached")


def test_replay_by_keys_and_a_link_to_a_moment(browser: Browser, finished: str) -> None:
    go(browser, finished, "#/flight?env=0")
    browser.wait(selector="footer .live")
    browser.press(key="0")
    browser.wait(selector="footer.replay")
    until(lambda: "event 0 of" in browser.text(selector="footer .where"))
    browser.press(key="l")
    until(lambda: "event 1 of" in browser.text(selector="footer .where"))
    browser.press(key="l")
    browser.press(key="h")
    browser.press(key="Shift+L")
    until(lambda: "event 101 of" in browser.text(selector="footer .where"))
    until(lambda: "at=101" in browser.eval(code="location.hash"))
    place = browser.eval(code="location.hash")
    before = browser.text(selector="aside")
    for _ in range(5):
        browser.press(key="]")
    browser.press(key=" ")
    until(lambda: "event 101 of" not in browser.text(selector="footer .where"))
    browser.press(key=" ")
    browser.press(key="n")
    browser.wait(selector="footer .live")
    go(browser, finished, place)
    until(lambda: "event 101 of" in browser.text(selector="footer .where"))
    assert until(lambda: browser.text(selector="aside") == before)


def test_the_board_by_keys_and_filter(browser: Browser, finished: str) -> None:
    go(browser, finished)
    until(lambda: len(rows(browser)) == 12)
    order = [int(text.split(",")[0].split()[1]) for text in rows(browser)]
    for keys, at in (("jjkj", 1), ("G", -1), ("g", 0), ("j", 1)):
        for key in keys:
            browser.press(key="Shift+G" if key == "G" else key)
        chosen = f"[role=option][aria-selected=true][data-env='{order[at]}']"
        browser.wait(selector=chosen, state="attached")
    browser.press(key="Enter")
    assert browser.text(selector="aside h2") == f"Environment {order[1]}"
    browser.press(key="Escape")
    browser.press(key="s")
    until(lambda: rows(browser)[0].startswith("environment 0,"))
    browser.press(key="/")
    browser.type(text=f"env={demo.STALLED}")
    until(lambda: len(rows(browser)) == 1)
    browser.type(text=" stage>x")
    until(lambda: "no order" in browser.text(selector=".box .note"))
    browser.press(key="Escape")
    browser.press(key="?")
    browser.wait(selector="dialog[open]")
    browser.press(key="Escape")
    browser.wait(selector="dialog[open]", state="detached")


def test_events_of_the_whole_journal(browser: Browser, finished: str) -> None:
    go(browser, finished, "#/events?filter=type%3DSEED_GERMINATED+env%3D0")
    browser.click(selector=".more .link")
    texts = until(lambda: browser.texts(selector=".view li .text"))
    assert len(texts) == 2 and all("germinated" in text for text in texts)


def test_text_from_a_run_is_never_markup(browser: Browser, tmp_path: Path) -> None:
    evil = '<img src=x onerror="document.title=1">'
    events = story()
    for event in events:
        if "blueprint" in event.data:
            event.data["blueprint"] = evil
        if event.event_type.value == "TRAINING_STARTED":
            event.data |= {"task": evil, "policy": evil}
    run = write_run(tmp_path, events, run_id="evil")
    with serving(run, tmp_path / "cache") as listening:
        go(browser, listening.link)
        for place in ("#/flight?env=0&slot=blocks_1", "#/events", "#/compare", "#/leaders"):
            turn(browser, place)
            until(lambda: evil in "".join(browser.texts(selector="header, aside, main td, main .text")))
            assert browser.eval(code="document.querySelectorAll('main img').length") == 0
        assert not [line for line in browser.said() if "Content Security Policy" in line]


def test_a_dialog_opens_again_however_soon_after_it_closed(browser: Browser, finished: str) -> None:
    go(browser, finished)
    until(lambda: rows(browser))
    browser.press(key="x")
    for key in ("?", "x") * 3:
        browser.wait(selector="dialog[open]")
        again = f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"
        browser.eval(code=f"(document.querySelector('dialog[open]').close(), {again})")
        time.sleep(0.02)
    browser.wait(selector="dialog[open]")
    browser.press(key="Escape")
    browser.wait(selector="dialog", state="detached")


def test_exports(browser: Browser, finished: str, tmp_path: Path) -> None:
    go(browser, finished)
    until(lambda: rows(browser))
    for kind in ("CSV", "JSON", "PNG"):
        browser.press(key="x")
        browser.wait(selector="dialog[open]")
        path = tmp_path / f"view.{kind}"
        name = browser.download(selector=f"dialog button:text-is('{kind}')", path=str(path))
        assert name.endswith(f".{kind.lower()}")
        if kind != "PNG":
            browser.press(key="Escape")
    assert len(list(csv.DictReader((tmp_path / "view.CSV").read_text(encoding="utf-8").splitlines()))) == 12
    assert {row["env"] for row in json.loads((tmp_path / "view.JSON").read_text())} == set(range(12))
    picture = (tmp_path / "view.PNG").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    (ARTIFACTS / "exported.png").write_bytes(picture)


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_no_accessibility_violation_on_any_view(browser: Browser, finished: str, scheme: str, width: int) -> None:
    found = {}

    def judge(view: str) -> None:
        browser.shot(path=str(ARTIFACTS / f"{view}-{scheme}-{width}.png"))
        found[view] = browser.axe()
        assert browser.eval(code="document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than the page"
        assert browser.said() == []

    go(browser, finished, width=width, height=800, scheme=scheme)
    for view, place in VIEWS.items():
        turn(browser, place)
        browser.wait(selector=f"nav [aria-current]:has-text('{place[2:].split('?')[0]}')")
        browser.wait(selector=READY[view], state="attached")
        judge(view)
    for view, key in DIALOGS.items():
        browser.press(key=key)
        browser.wait(selector="dialog[open]")
        judge(view)
        browser.press(key="Escape")
        browser.wait(selector="dialog", state="detached")
    assert not {view: problems for view, problems in found.items() if problems}


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_a_run_without_events_and_one_that_is_damaged(
    browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    RunDirectory.create(tmp_path / "runs", "empty", {})
    journal = write_run(tmp_path / "runs", story(), run_id="damaged") / "events-00001.jsonl"
    data = bytearray(journal.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    journal.write_bytes(data)
    with serving(tmp_path / "runs", tmp_path / "cache") as listening:
        go(browser, listening.link, width=width, height=800, scheme=scheme)
        for run, said in STATES.items():
            turn(browser, f"#/flight?run={run}")
            until(lambda said=said: said in browser.text(selector="body"))
            browser.shot(path=str(ARTIFACTS / f"{run}-{scheme}-{width}.png"))
            assert browser.axe() == []


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_without_a_token_the_page_asks_for_it(browser: Browser, finished: str, scheme: str, width: int) -> None:
    browser.open(url=finished.split("#")[0], width=width, height=800, scheme=scheme, fresh=True)
    browser.wait(selector="form input")
    browser.shot(path=str(ARTIFACTS / f"token-{scheme}-{width}.png"))
    assert browser.axe() == []
    browser.eval(code="document.querySelector('main p').innerHTML = '<img src=\"data:,\">too faint to read'")
    browser.eval(code="document.querySelector('main p').style.color = 'var(--line-strong)'")
    assert {found.split(":")[0] for found in browser.axe()} == {"image-alt", "color-contrast"}, "axe sees what is wrong"
    browser.fill(selector="form input", text=finished)
    browser.press(key="Enter")
    browser.wait(selector=".state")
    assert "token" not in browser.eval(code="location.href")


def test_a_wheel_carries_the_page_that_was_built(browser: Browser, tmp_path: Path) -> None:
    if shutil.which("uv") is None:
        pytest.skip("no uv here to build a wheel")
    build = ["uv", "build", "--wheel", "--offline", "--quiet", "--out-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        static = {name.removeprefix("esper/karn/web/static/"): name for name in content.namelist()}
        page = content.read(static["index.html"]).decode()
    wanted = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    assert len(wanted) >= 3 and set(wanted) <= set(static)
