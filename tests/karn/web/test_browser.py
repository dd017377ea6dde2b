"""The page in a headless Chromium, live and in replay: what an operator does there."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn import demo
from karn.web.browser import ARTIFACTS, ROOT, Browser, go, in_a_browser, rows, until
from karn.web.serve import serving

pytestmark = in_a_browser()


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
