"""The page in a headless Chromium: notices that are asked for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.leyline import TelemetryEventType as T
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory
from karn.test_lookout import under_way
from karn.web.browser import Browser, go, in_a_browser, until
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
