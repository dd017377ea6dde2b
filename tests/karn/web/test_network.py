"""The picture of the grown network in a headless Chromium: the same as in the report, and it has room."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.karn.aggregator import fold
from esper.karn.snapshot import build
from karn.journals import write_run
from karn.networks import Grows, grown_run, transformer
from karn.web.browser import ARTIFACTS, Browser, go, in_a_browser, until
from karn.web.serve import serving

pytestmark = in_a_browser()

EVIL = '<img src=x onerror="document.title=1">'
SEEDS = [
    Grows("layer_0_attention_query", "lora4", "FOSSILIZED", 1.0, 4.21),
    Grows("layer_0_attention_value", EVIL, "BLENDING", 0.4, 0.3),
    Grows("layer_5_attention_query", "lora8", "PRUNED"),
]
FITS = """() => [...document.querySelectorAll('figure[data-network] svg')].filter((svg) => {
  const box = svg.getBoundingClientRect();
  return box.left < -1 || box.right > innerWidth + 1;
}).length"""
SPOKEN = """() => [...document.querySelectorAll('figure[data-network] svg')]
  .map((svg) => svg.getAttribute('aria-label'))"""
OUTSIDE = """() => [...document.querySelectorAll('figure[data-network] svg')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const inner = text.getBoundingClientRect();
    return inner.left < box.left - 1 || inner.right > box.right + 1;
  }).map((text) => text.textContent);
})"""


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_every_text_of_the_picture_is_on_the_page_and_has_room(
    browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    events = grown_run(transformer(), SEEDS)
    network = build(fold(events), 0.0).network
    assert network is not None
    said = [label.text for block in (network.head, *network.blocks) for label in block.labels]
    run = write_run(tmp_path, events, run_id="grown")
    with serving(run, tmp_path / "cache") as listening:
        go(browser, listening.link, "#/verdict", width=width, height=800, scheme=scheme)
        until(lambda: browser.texts(selector="figure[data-network] text") == said)
        browser.shot(path=str(ARTIFACTS / f"network-verdict-{scheme}-{width}.png"))
        assert browser.eval(code=f"({FITS})()") == 0 and browser.eval(code=f"({OUTSIDE})()") == []
        spoken = browser.eval(code=f"({SPOKEN})()")
        assert spoken == [block.spoken for block in (network.head, *network.blocks)]
        assert browser.axe() == []
        browser.eval(code="document.querySelector('figure[data-network]').scrollIntoView()")
        browser.shot(path=str(ARTIFACTS / f"network-{scheme}-{width}.png"))
        browser.eval(code="document.querySelector('.grown button').click()")
        until(lambda: browser.texts(selector="aside figure[data-network] text") == said)
        browser.eval(code="document.querySelector('aside figure[data-network]').scrollIntoView()")
        browser.shot(path=str(ARTIFACTS / f"network-environment-{scheme}-{width}.png"))
        assert browser.axe() == []
        assert browser.eval(code="document.querySelectorAll('main img').length") == 0
        assert browser.said() == []
