"""The page in a headless Chromium: notices that are asked for, edits, and ways to get there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.karn.notes import Edit, edit, read_notes
from esper.karn.web.server import Door
from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn.journals import write_run
from karn.streams import story
from karn.test_lookout import under_way
from karn.test_notes import HOSTILE
from karn.web.browser import ARTIFACTS, Browser, go, in_a_browser, until
from karn.web.serve import serving

pytestmark = in_a_browser()

NOTICES = """(permission) => {
  window.told = [];
  window.Notification = class { constructor(title, options) { told.push([title, options.body]); } };
  Notification.permission = "default";
  Notification.requestPermission = async () => (Notification.permission = permission);
}"""


def test_a_desktop_notice_is_given_only_when_it_was_asked_for(browser: Browser, tmp_path: Path) -> None:
    rec, run = under_way([50.0] * 12, time.time() - 8), RunDirectory.create(tmp_path, "live", {})
    button = "main .tell button"
    with JournalWriter(run.path, "live") as writer, serving(run.path, tmp_path / "cache") as listening:
        for event in rec.events:
            writer(event)
        writer.flush()
        go(browser, listening.link, "#/verdict", fresh=True)
        browser.eval(code=f"({NOTICES})('denied')")
        assert "Tell me" in browser.text(selector=button)
        browser.click(selector=button)
        until(lambda: "does not let this page" in browser.text(selector="main .tell"))
        browser.eval(code=f"({NOTICES})('granted')")
        browser.click(selector=button)
        until(lambda: "This tab tells you" in browser.text(selector=button))
        assert browser.axe() == [] and browser.eval(code="told.length") == 0
        writer(rec.say(T.TRAINING_ENDED, status="failed", reason="<b>boom</b>", seconds=1.0))
        writer.flush()
        until(lambda: browser.eval(code="told.length") == 1)
        assert browser.eval(code="told[0]") == [f"{rec.events[0].data['run_id']}: failed", "Failed: <b>boom</b>"]


def test_runs_are_named_tagged_described_put_away_and_deleted(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("one", "two", "three"):
        write_run(folder, story(), run_id=name)
    edit(folder / "two", Edit(name=HOSTILE[:80], tags=["<b>x</b>"], notes=HOSTILE + "\n" + "y" * 100_000))

    def table() -> str:
        return str(browser.text(selector="main table"))

    def names() -> list[str]:
        return list(browser.texts(selector="main td.name .link"))

    with serving(folder, tmp_path / "cache", door=Door(port=0, edits=True)) as listening:
        go(browser, listening.link, "#/runs")
        until(lambda: len(names()) == 3)
        assert "<img src=x" in table() and "\u202e" not in table() and "<b>x</b>" in table()
        assert browser.eval(code="document.querySelectorAll('main img, main b').length") == 0
        assert browser.eval(code="document.documentElement.scrollWidth <= innerWidth")
        browser.click(selector="main tr:has(.link:text-is('one')) td.name .quiet")
        browser.wait(selector="main form")
        browser.fill(selector="main form input >> nth=0", text="the first try")
        browser.fill(selector="main form input >> nth=1", text="good, base")
        browser.fill(selector="main form textarea", text="what I learnt\nmore")
        browser.click(selector="main form button:text-is('Save')")
        until(lambda: "the first try" in table() and "what I learnt" in table())
        found = read_notes(folder / "one")
        assert (found.name, found.tags, found.notes) == ("the first try", ["base", "good"], "what I learnt\nmore")
        browser.shot(path=str(ARTIFACTS / "edits.png"))
        assert browser.axe() == []
        edit(folder / "one", Edit(notes="someone else's"))
        browser.fill(selector="main form textarea", text="mine")
        browser.click(selector="main form button:text-is('Save')")
        until(lambda: "edited by someone else" in browser.text(selector="main form"))
        assert read_notes(folder / "one").notes == "someone else's"
        browser.click(selector="main tr:has(.link:text-is('one')) td.name .quiet")
        browser.click(selector="main tr:has(.link:text-is('three')) td.name .quiet")
        browser.click(selector="main form button:text-is('Archive')")
        until(lambda: names() == ["two", "one"] or sorted(names()) == ["one", "two"])
        browser.click(selector="main .away input")
        until(lambda: len(names()) == 3)
        browser.fill(selector="main input[type=search]", text="tag=base")
        until(lambda: names() == ["one"])
        browser.fill(selector="main input[type=search]", text="")
        until(lambda: len(names()) == 3)
        browser.click(selector="main form button:text-is('Delete…')")
        assert (folder / "three").is_dir()
        browser.click(selector="main form button:text-is('Yes, delete')")
        until(lambda: len(names()) == 2)
        assert not (folder / "three").exists()
    with serving(folder, tmp_path / "cache") as listening:
        go(browser, listening.link, "#/runs?run=one")
        until(lambda: len(names()) == 2)
        browser.click(selector="main tr:has(.link:text-is('one')) td.name .quiet")
        until(lambda: "someone else's" in browser.text(selector="tr.about"))
        assert browser.eval(code="document.querySelectorAll('main form').length") == 0, "off unless asked for"
