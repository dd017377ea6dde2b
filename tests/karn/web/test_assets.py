from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest

from esper.karn.web import assets
from esper.leyline import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, Path]:
    """``(static, sources)``: a page built from its sources."""
    static, sources = tmp_path / "static", tmp_path / "web"
    (sources / "src").mkdir(parents=True)
    (sources / "src" / "main.ts").write_text("1")
    (sources / "package.json").write_text("{}")
    static.mkdir()
    (static / "index.html").write_text("")
    (static / assets.STAMP).write_text(assets.digest(sources) + "\n")
    return static, sources


def test_state_follows_the_sources(checkout: tuple[Path, Path]) -> None:
    static, sources = checkout
    assert assets.state(static, sources) == "ready"
    (sources / "src" / "main.ts").write_text("2")
    assert assets.state(static, sources) == "stale"
    (sources / "src" / "main.ts").write_text("1")
    (sources / "src" / "more.ts").write_text("")
    assert assets.state(static, sources) == "stale"
    (static / "index.html").unlink()
    assert assets.state(static, sources) == "missing"


def test_a_wheel_is_never_stale(checkout: tuple[Path, Path], tmp_path: Path) -> None:
    static, _ = checkout
    assert assets.state(static, tmp_path / "nowhere") == "ready"


def test_without_node_one_line_says_what_is_needed(
    checkout: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    static, sources = checkout
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="Node 20 or newer with npm") as problem:
        assets.build(print, static, sources)
    assert "\n" not in str(problem.value)
    with pytest.raises(DataError, match="sources are not here"):
        assets.build(print, static, sources / "nowhere")


def test_a_failed_build_says_where_and_why(checkout: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    static, sources = checkout
    false = shutil.which("false")
    monkeypatch.setattr(shutil, "which", lambda name: false)
    with pytest.raises(DataError, match=r"failed in .*web \(exit 1\)"):
        assets.build(print, static, sources)
    assert assets.state(static, sources) == "ready", "what was there stays"


def test_of_two_who_need_the_page_one_builds_it(checkout: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    static, sources = checkout
    (static / assets.STAMP).write_text("of others")
    built: list[str] = []

    def slow(say: object, static: Path, sources: Path) -> None:
        time.sleep(0.1)
        built.append(assets.state(static, sources))
        (static / assets.STAMP).write_text(assets.digest(sources))

    monkeypatch.setattr(assets, "build", slow)
    both = [threading.Thread(target=assets.make_ready, args=(print, static, sources)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert built == ["stale"]


def test_the_lock_names_no_host() -> None:
    """npm leaves registries out by ``web/.npmrc``; the links to sponsors are taken out by hand."""
    lock = (ROOT / "web" / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock and "://" not in lock
