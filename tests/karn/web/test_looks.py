"""The page in a headless Chromium: how its views, dialogs and odd states look, and that everyone can read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.nissa.rundir import RunDirectory
from karn import demo
from karn.journals import write_run
from karn.streams import story
from karn.web.browser import ARTIFACTS, ROOT, Browser, go, in_a_browser, rows, turn, until
from karn.web.serve import serving

pytestmark = in_a_browser()

VIEWS = {
    "verdict": "#/verdict",
    "flight": "#/flight",
    "environment": f"#/flight?env={demo.BLOCKED}&seed=e{demo.BLOCKED}-stem-1",
    "events": f"#/events?filter=env%3D{demo.BROKEN}",
    "governor": "#/governor",
    "curves": "#/curves",
    "runs": "#/runs",
    "compare": "#/compare",
    "leaders": "#/leaders",
    "replay": f"#/flight?at=700&env={demo.BROKEN}",
}
READY = {
    "verdict": "[data-about=result]",
    "flight": "[role=option]",
    "environment": "[data-blocked=yes]",
    "events": ".view .text",
    "governor": ".view .text",
    "curves": "figure canvas",
    "runs": ".view td.name",
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


def test_a_gone_server_is_said_within_seconds(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path, story(), run_id="gone")
    with serving(run, tmp_path / "cache") as listening:
        go(browser, listening.link)
        until(lambda: rows(browser))
    until(lambda: "No contact with Overwatch" in browser.text(selector="[aria-label=Notices]"))
    assert "as of" in browser.text(selector="[aria-label=Notices]")


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
