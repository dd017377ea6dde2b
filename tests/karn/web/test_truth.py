"""The page in a headless Chromium: what it says is so, whatever a run, a server or a file system does."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from esper.karn.advice import About
from esper.karn.aggregator import fold
from esper.karn.report import write_report
from esper.karn.snapshot import build
from esper.karn.verdict import lines
from esper.karn.web.server import Door, listen, make_server
from esper.leyline import TelemetryEvent
from esper.leyline import TelemetryEventType as T
from karn.journals import write_run
from karn.streams import Recorder, begin, begin_episode, epoch_done, story
from karn.test_curves import learner
from karn.test_runtable import write
from karn.test_verdict import BETTER, run_of
from karn.web.browser import ARTIFACTS, Browser, go, in_a_browser, rows, turn, until
from karn.web.serve import end, serving

pytestmark = in_a_browser()

LONG = "all the words of a reason that somebody else wrote " * 400
"""Some 20,000 characters with places to break."""
SOLID = "x" * 20_000
"""As many without one."""
VIEWS = (
    "verdict",
    "curves",
    "runs",
    "flight",
    "flight?env=0&slot=blocks_1",
    "events",
    "governor",
    "compare",
    "leaders",
)
REACH = """() => [...document.querySelectorAll('header nav button, header .tools button')].filter((button) => {
  const box = button.getBoundingClientRect();
  const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return box.right > innerWidth || box.left < 0 || !button.contains(hit);
}).map((button) => button.innerText)"""


def wordy() -> list[TelemetryEvent]:
    """The story with long texts wherever a run can put one, and a failure at the end."""
    events = story()
    for event in events:
        data = event.data
        if event.event_type is T.TRAINING_STARTED:
            data |= {"task": SOLID, "policy": LONG}
        if event.event_type is T.TRAINING_ENDED:
            data |= {"status": "failed", "reason": LONG}
        for name in ("blueprint", "reason", "why_not", "by"):
            if name in data and event.event_type is not T.TRAINING_ENDED:
                data[name] = SOLID if name == "blueprint" else LONG
        if event.event_type in (T.EPISODE_STARTED, T.EPISODE_ENDED):
            data |= {"policy": SOLID, "arm": SOLID}
        if event.event_type is T.EPOCH_COMPLETED:
            data["arm"] = SOLID
        if event.event_type is T.TELEMETRY_DROPPED:
            data["reason"] = SOLID
    return events


def test_no_text_of_a_run_pushes_anything_out_of_the_page(browser: Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path, wordy(), run_id="wordy")
    with serving(run, tmp_path / "cache") as listening:
        for width in (1280, 390):
            go(browser, listening.link, width=width, height=800)
            for view in VIEWS:
                turn(browser, f"#/{view}")
                browser.wait(selector=f"nav [aria-current]:has-text('{view.split('?')[0]}')")
                assert browser.eval(code=f"({REACH})()") == [], (view, width)
                assert browser.eval(code="document.documentElement.scrollWidth <= innerWidth"), (view, width)
                assert browser.eval(code="document.querySelector('main').clientHeight >= 400"), (view, width)
            assert len(browser.eval(code="document.querySelector('.state').title")) > 20_000
        browser.shot(path=str(ARTIFACTS / "wordy.png"))
        assert browser.said() == []


def test_seeds_are_shown_to_the_last_digit(browser: Browser, tmp_path: Path) -> None:
    seed = 7_879_204_788_149_259_239
    events = story()
    for event in events:
        if event.event_type in (T.EPISODE_STARTED, T.EPISODE_ENDED):
            event.data["seed"] = seed
    with serving(write_run(tmp_path, events, run_id="seeds"), tmp_path / "cache") as listening:
        go(browser, listening.link, "#/leaders")
        until(lambda: str(seed) in browser.text(selector=".view table"))
        assert "first, on the test split" in browser.text(selector=".view .head")
    for event in events:
        event.data.pop("test_metric", None)
    with serving(write_run(tmp_path, events, run_id="untested"), tmp_path / "cache") as listening:
        go(browser, listening.link, "#/leaders")
        until(lambda: "on the validation split; no test split was read" in browser.text(selector=".view .head"))
        assert "test" not in browser.texts(selector=".view th")


def test_a_failure_is_an_alarm_and_no_quiet_word(browser: Browser, tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec, envs=1)
    begin_episode(rec, 0)
    epoch_done(rec, 0, 1, 80.0)
    rec.say(T.TRAINING_ENDED, status="failed", reason="the loss is not finite", seconds=1.0)
    with serving(write_run(tmp_path, rec.events, run_id="failed"), tmp_path / "cache") as listening:
        go(browser, listening.link)
        until(lambda: "run failed: the loss is not finite" in browser.text(selector=".rail"))
        assert browser.eval(code="document.querySelector('.state span').className").split()[0] == "critical"


def test_the_first_screen_is_the_verdict_in_the_words_of_every_face(browser: Browser, tmp_path: Path) -> None:
    events = run_of({"heuristic": [10.1, 9.9], "static": [10.0, 10.0]})
    wanted = list(lines(build(fold(events), 0.0, known=About(str(tmp_path / "guessing"))).verdict))
    with serving(write_run(tmp_path, events, run_id="guessing"), tmp_path / "cache") as listening:
        go(browser, listening.link, "")
        browser.wait(selector="[data-level=bad]")
        assert browser.text(selector="[data-level=bad] h2") + " [bad]" == wanted[0][1]
        shown = [(row.split("\n")[0], row.replace("▲ ", "")) for row in browser.texts(selector="main dl > div")]
        for (about, text), (_, row) in zip(wanted[1:-1], shown, strict=False):
            assert about in row and text in row
        drawn = until(lambda: browser.texts(selector="main figure[data-title] li"))
        assert drawn == ["heuristic9.90", "static10"], "of the newest episode"
        marks = browser.texts(selector="footer .legend li")
        assert [text.split()[1] for text in marks] == ["begun", "ended"], "the signs that there are, and no other"
        assert browser.axe() == []
        browser.press(key="2")
        until(lambda: rows(browser))
        browser.press(key="1")
        browser.wait(selector="[data-level=bad]")


def test_the_first_screen_of_a_learner_has_the_return_of_each_round(browser: Browser, tmp_path: Path) -> None:
    events = learner(3).events
    returns = iter([1.5, -2.25, 3.125])
    for event in events:
        if event.event_type is T.PPO_UPDATE_COMPLETED:
            event.data["mean_episode_return"] = next(returns)
    with serving(write_run(tmp_path, events, run_id="learner"), tmp_path / "cache") as listening:
        go(browser, listening.link, "#/verdict", width=390, height=844)
        browser.wait(selector="main figure[data-title^='mean return'] canvas")
        assert browser.text(selector="main figure[data-title] .where") == "round 3, the last"
        assert browser.texts(selector="main figure[data-title] li .num") == ["3.13"]
        turn(browser, "#/verdict?at=9")
        until(lambda: "not of the moment of the replay" in browser.text(selector="main aside"))
        assert browser.eval(code="document.querySelector('main aside canvas')") is None


def test_a_tab_outlives_its_server_and_says_what_it_needs(
    browser: Browser, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Started again with the same token it goes on by itself; with another one it asks for that, and is quiet."""
    run = write_run(tmp_path, story(), run_id="again")
    with serving(run, tmp_path / "cache", door=Door(port=0, token="k" * 43)) as listening:
        go(browser, listening.link)
        until(lambda: rows(browser))
        port = listening.port
    until(lambda: "No contact with Overwatch" in browser.text(selector="[aria-label=Notices]"))
    with serving(run, tmp_path / "cache", door=Door(port=port, token="k" * 43)):
        until(lambda: "No contact" not in browser.text(selector="[aria-label=Notices]"))
    with serving(run, tmp_path / "cache", door=Door(port=port, token="o" * 43)):
        browser.wait(selector="[role=alert]")
        assert "does not know this tab's token" in browser.text(selector="main")
        asked = "performance.getEntriesByType('resource').length"
        before = browser.eval(code=asked)
        browser.eval(code="new Promise((done) => setTimeout(done, 1200))")
        assert browser.eval(code=asked) == before, "it asks no more until it is given another token"
        browser.fill(selector="form input", text="o" * 43)
        browser.press(key="Enter")
        until(lambda: rows(browser))
    assert capfd.readouterr().err == "", "nothing of this is worth a line in the terminal"


def test_runs_that_come_and_go(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_run(folder, story(), run_id="first")
    with serving(folder, tmp_path / "cache") as listening:
        go(browser, listening.link, "#/flight?run=first")
        until(lambda: rows(browser))
        write_run(folder, story(), run_id="second")
        until(lambda: any(text.startswith("second") for text in browser.texts(selector="header option")))
        shutil.move(folder / "first", tmp_path / "elsewhere")
        browser.eval(code="location.reload()")
        until(lambda: "There is no run first here" in browser.text(selector="[aria-label=Notices]"))
        assert "No contact" not in browser.text(selector="body")
        turn(browser, "#/flight?run=second")
        until(lambda: rows(browser))


def test_behind_a_prefix(browser: Browser, tmp_path: Path) -> None:
    """A proxy serves the page below a path and takes the path away."""
    listening = listen(Door(port=0))
    server = make_server(write_run(tmp_path, story(), run_id="deep"), listening, cache=tmp_path / "cache")
    inner: Callable[..., Awaitable[None]] = server.config.app  # type: ignore[assignment]

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        inside = path.removeprefix("/deep/down")
        if scope["type"] != "lifespan" and inside == path:
            if scope["type"] == "http":
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})
            return
        await inner({**scope, "path": inside, "raw_path": inside.encode()}, receive, send)

    server.config.app = proxy
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening.socket]}, daemon=True)
    thread.start()
    try:
        go(browser, listening.link.replace("/#", "/deep/down/#"))
        until(lambda: rows(browser))
    finally:
        end(server, thread, listening)


def test_everything_that_is_pressed_is_large_enough_to_hit(browser: Browser, finished: str) -> None:
    small = """() => [...document.querySelectorAll('button, summary')].filter((one) => {
      const box = one.getBoundingClientRect();
      return box.width && (box.height < 24 || box.width < 24);
    }).map((one) => one.outerHTML.slice(0, 90))"""
    for view in ("verdict", "flight", "flight?env=0", "events", "governor", "compare", "leaders"):
        go(browser, finished, f"#/{view}")
        browser.wait(selector="main button, main table", state="attached")
        assert browser.eval(code=f"({small})()") == [], view


def test_the_table_of_runs_is_searched_sorted_compared_and_says_how_each_was_started(
    browser: Browser, tmp_path: Path
) -> None:
    good, guess = run_of(BETTER), run_of({"heuristic": [10.1, 9.9], "static": [10.0, 10.0]})
    for name, events, rate in (("good", good, 0.01), ("guess", guess, 1e-9)):
        write_report(write(tmp_path / "runs", name, events, lr=rate), figures=False)

    def names() -> list[str]:
        return list(browser.texts(selector="main td.name .link"))

    with serving(tmp_path / "runs", tmp_path / "cache") as listening:
        go(browser, listening.link, "#/runs")
        until(lambda: len(names()) == 2)
        table = browser.text(selector="main table")
        assert "lr" in table and "No better than guessing" in table and "Better than its control static" in table
        browser.click(selector="main th button:text-is('lr')")
        until(lambda: names() == ["guess", "good"])
        browser.fill(selector="main input[type=search]", text="lr>=0.01")
        until(lambda: names() == ["good"])
        browser.fill(selector="main input[type=search]", text="")
        until(lambda: len(names()) == 2)
        browser.click(selector="main td button:text-is('how')")
        until(
            lambda: "not committed" in browser.text(selector="tr.about") or "clean" in browser.text(selector="tr.about")
        )
        assert browser.axe() == []
        for box in (1, 2):
            browser.eval(code=f"document.querySelectorAll('main td input')[{box - 1}].click()")
        until(lambda: "differs in lr" in browser.text(selector="main"))
        browser.click(selector="main button:text-is('Compare')")
        until(lambda: "runs=" in browser.eval(code="location.hash"))
        browser.wait(selector="main .chart")
        turn(browser, "#/runs")
        until(lambda: len(names()) == 2)
        browser.click(selector="main td.name .link:text-is('guess')")
        browser.wait(selector="[data-level=bad]")


def test_curves_zoom_together_and_say_the_value_at_the_cursor(browser: Browser, finished: str) -> None:
    go(browser, finished, "#/curves")
    browser.wait(selector="figure[data-title=loss] canvas")
    first, other = "figure[data-title=accuracy]", "figure[data-title=loss]"

    def said(figure: str) -> str:
        return str(browser.text(selector=f"{figure} .where"))

    until(lambda: "the last" in said(first))
    browser.drag(selector=f"{first} .u-over", **{"from": 0.2, "to": 0.5})
    browser.wait(selector="button:text-is('whole range'):not([disabled])")
    until(lambda: said(first).startswith("epoch ") and "the last" not in said(first))
    assert said(other) == said(first), "one cursor for all"
    browser.eval(
        code=f"document.querySelector('{first} .plot').dispatchEvent(new MouseEvent('dblclick', {{bubbles: true}}))"
    )
    browser.wait(selector="button:text-is('whole range')[disabled]")
    before = browser.text(selector=f"{first} li .num")
    code = "(slider => { slider.value = 0.9; slider.dispatchEvent(new Event('input')); })"
    browser.eval(code=f"{code}(document.querySelector('input[type=range]'))")
    until(lambda: browser.text(selector=f"{first} li .num") != before)
    browser.click(selector=".head input[type=checkbox]")
    browser.wait(selector=f"{other} canvas")
    assert browser.said() == []


def test_lines_that_are_carried_along_are_those_that_rest(browser: Browser, tmp_path: Path) -> None:
    """What is copied while the range moves stands where the chart's own drawing stands a moment later."""
    rec, epochs, envs = Recorder(), 1000, 11
    begin(rec, envs=envs, max_epochs=epochs)
    for env in range(envs):
        begin_episode(rec, env, max_epochs=epochs)
        for epoch in range(1, epochs + 1):
            epoch_done(rec, env, epoch, 50.0 + env / 10 + 20 * math.sin(epoch / 30))
    with serving(write_run(tmp_path, rec.events, run_id="heavy"), tmp_path / "cache") as listening:
        go(browser, listening.link, "#/curves", width=1280, height=800)
        browser.wait(selector="figure[data-title=accuracy] canvas")
        browser.eval(code=f"{WAIT}(700)")
        moving = browser.eval(code=f"({CARRY})()")
        browser.eval(code=f"{WAIT}(700)")
        resting, tiles = browser.eval(code=f"({MIDDLES})()"), browser.eval(code="window.copied")
        assert tiles > 0 and sum(map(bool, resting)) > 250, "it was copied, and there are lines"

        def apart(shift: int) -> float:
            pairs = zip(moving[20 + shift : len(moving) - 20 + shift], resting[20:-20], strict=True)
            found = [abs(one - other) for one, other in pairs if one and other]
            return sum(found) / len(found)

        nearest = min(range(-20, 21), key=apart)
        assert abs(nearest) <= 1 and apart(nearest) < 2, "pixels"


WAIT = "((ms) => new Promise((done) => setTimeout(done, ms)))"
MIDDLES = """() => {
  const canvas = document.querySelector("figure[data-title=accuracy] canvas");
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const found = [];
  for (let x = 60; x < width - 12; x += 1) {
    let [sum, many] = [0, 0];
    for (let y = 8; y < height - 24; y += 1) {
      const at = 4 * (y * width + x);
      const [least, , most] = [...data.subarray(at, at + 3)].sort((one, other) => one - other);
      if (most - least > 40 && data[at + 3] > 100) [sum, many] = [sum + y, many + 1];
    }
    found.push(many ? sum / many : 0);
  }
  return found;
}"""
"""Of each column of pixels the mean height of what has a colour."""
CARRY = f"""async () => {{
  const middles = {MIDDLES};
  const over = document.querySelector("figure[data-title=accuracy] .u-over");
  const box = over.getBoundingClientRect();
  const place = {{ bubbles: true, cancelable: true, clientX: box.x + box.width / 2 }};
  const wheel = (keys) => over.dispatchEvent(new WheelEvent("wheel", {{ ...place, ...keys }}));
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  wheel({{ ctrlKey: true, deltaY: -100 }});
  await new Promise((done) => setTimeout(done, 700));
  window.copied = 0;
  const copy = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (...given) {{
    window.copied += 1;
    return copy.apply(this, given);
  }};
  for (let at = 0; at < 5; at += 1) {{
    wheel({{ shiftKey: true, deltaX: 7 }});
    await frame();
  }}
  CanvasRenderingContext2D.prototype.drawImage = copy;
  return middles();
}}"""


def test_runs_overlaid_have_one_colour_each_and_a_seeds_life_stands_behind(browser: Browser, finished: str) -> None:
    go(browser, finished, "#/curves")
    browser.wait(selector="figure[data-title=accuracy] canvas")
    browser.eval(code=CHOOSE)
    told = until(lambda: browser.texts(selector=".keys")[0])
    assert "the life of" in told and "training" in told
    machine = browser.texts(selector=".across .keys")
    assert machine and "compute 100 % of the time" in machine[0]
    assert browser.texts(selector="figure[data-title='cores in use'] li .name") == ["the run", "there are"]
    browser.click(selector="details summary")
    browser.click(selector="details .box button:text-is('all found')")
    until(lambda: "20250101-short: grown" in "".join(browser.texts(selector="figure[data-title=accuracy] li .name")))
    colours = browser.eval(code=f"({COLOURS})()")
    assert set(colours) == {"20250101-short", "20260101-demo"}
    assert all(len(each) == 1 for each in colours.values()) and len(set(map(tuple, colours.values()))) == 2
    assert browser.axe() == [] and browser.said() == []
    browser.click(selector="details .box button:text-is('none')")
    browser.wait(selector="label:has-text('episode')")


CHOOSE = """(() => {
  const select = [...document.querySelectorAll(".head select")].at(-1);
  select.selectedIndex = 1;
  select.dispatchEvent(new Event("change", { bubbles: true }));
})()"""
COLOURS = """() => {
  const found = {};
  for (const line of document.querySelectorAll("figure[data-title] li[title]")) {
    const run = line.title.split(":")[0];
    (found[run] ??= new Set()).add(line.querySelector("svg").style.color);
  }
  return Object.fromEntries(Object.entries(found).map(([run, colours]) => [run, [...colours]]));
}"""
