"""Foreign run directories: what is written in one reaches no face raw, and nothing outside is touched or waited for."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from esper.karn.plain import render
from esper.karn.report import read_evidence, write_report
from esper.karn.runs import find_runs
from esper.karn.runtable import run_table, text
from esper.karn.snapshot import build
from esper.karn.source import Follower
from esper.karn.store import SqlStore
from esper.leyline import DataError, TelemetryEvent
from esper.nissa.console import ConsoleSink
from esper.nissa.journal import JournalConfig, JournalWriter
from esper.scripts.main import main
from esper.scripts.summary import print_summary
from karn.journals import RUN_ID, write_run
from karn.streams import START, story

pytestmark = pytest.mark.free_text

HOSTILE = "\x1b[31m\x1b]0;x\x07\x9b2J‮⁦​\r\n# <script>alert(1)</script>[x](javascript:alert(1))|`b` http://a.b/"
NAMES = ("heuristic", "grown", "static", "stem", "blocks_1", "neck", "conv3", "digits", "accuracy", "points", "%")
TEXTS = ("reason", "message", "unit", "task", "policy", "why_not")
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f‪-‮⁠-⁯]")


def spoiled(value: Any, key: str = "") -> Any:
    """``value`` with every name and reason in it made hostile."""
    if isinstance(value, dict):
        return {spoiled(name): spoiled(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [spoiled(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and (value in NAMES or key in TEXTS) else value


def hostile_story() -> Iterator[TelemetryEvent]:
    for event in story():
        slot = spoiled(event.slot_id)
        yield msgspec.structs.replace(event, slot_id=slot, message=event.message + HOSTILE, data=spoiled(event.data))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hostile"), hostile_story())


def clean(text: str, lines: Callable[[str], bool] = lambda line: line.startswith("# <")) -> str:
    """``text``, found to be fit for a terminal, with no line that a name made."""
    assert RAW.search(text) is None, repr(text[max(0, RAW.search(text).start() - 40) :][:90])  # type: ignore[union-attr]
    assert not any(map(lines, text.splitlines())) and r"\x1b[31m" in text.replace("\\\\", "\\").replace("\\[", "[")
    return text


def test_text_faces(run: Path) -> None:
    follower = Follower(run)
    follower.poll()
    clean(render(build(follower.state, START + 60, follower.damage)))
    runs = run_table([info.path for info in find_runs(run.parent)], START)
    clean(text(runs, runs.rows))
    clean(str(read_evidence(run)[0].table))
    out = io.StringIO()
    print_summary(run, Console(file=out, highlight=False, width=200))
    clean(out.getvalue())
    out = io.StringIO()
    sink = ConsoleSink(file=out)
    for event in hostile_story():
        sink(event)
    clean(out.getvalue())


def test_answers_in_sql(run: Path) -> None:
    with SqlStore([run]) as store:
        answer = store.query("select task, message as \"a\nb\" from events, runs where event_type = 'EPISODE_ENDED'")
    clean(answer.text())
    clean(answer.csv(exact=False))
    assert RAW.search(answer.json()) is None
    assert json.loads(answer.json().splitlines()[0])["task"] == "digits" + HOSTILE, "JSON and CSV are exact"
    assert "digits" + HOSTILE[:20] in answer.csv()


def test_a_report_has_no_markup_of_the_run(run: Path) -> None:
    page = clean(write_report(run).read_text())
    assert "<script" not in page and not re.search(r"(?<!\\)[\[\]]\(?javascript", page) and "://a.b" not in page
    for name in ("report.json", "figures/course.svg", "figures/contribution.svg", "figures/alpha.svg"):
        content = (run / "report" / name).read_text()
        assert RAW.search(content) is None and "<script" not in content.replace('"', "") or name == "report.json"


@pytest.mark.anyio
async def test_the_terminal_face(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("textual")
    from textual.widgets import Static

    from esper.karn.tui import BoardView, Overwatch
    from esper.karn.watch import RunWatch

    app = Overwatch(RunWatch(run, clock=lambda: START + 60, cache=tmp_path), rate=0.01)
    async with app.run_test(size=(160, 50)) as pilot:
        await pilot.pause()
        clean(str(app.query_one("#head", Static).content))
        clean(app.query_one(BoardView).render_line(0).text + r"\x1b[31m")
        for key in ("enter", "e"):
            await pilot.press(key)
            clean(str(app.query_one("#detail", Static).content))


def test_the_page(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    httpx = pytest.importorskip("httpx")
    from karn.web.serve import serving

    with serving(run, tmp_path) as listening:
        headers = {"authorization": f"Bearer {listening.access.token}"}
        base = f"http://127.0.0.1:{listening.port}"
        for path in ("/api/snapshot", "/api/events", "/api/environment/0", "/api/runs"):
            told = httpx.get(base + path, headers=headers, timeout=20).json()
            assert RAW.search(json.dumps(told, ensure_ascii=False).replace("\\n", "")) is None
            assert r"\x1b[31m" in json.dumps(told).replace("\\\\", "\\")
        httpx.get(base + "/metrics", headers=headers, timeout=20).text.encode("ascii")


def test_nothing_is_written_through_a_link(run: Path, tmp_path: Path) -> None:
    copied, outside = write_run(tmp_path, story()), tmp_path / "outside"
    outside.mkdir()
    (outside / "course.svg").write_text("mine")
    (copied / "report").symlink_to(outside)
    with pytest.raises(DataError, match="report: a link"):
        write_report(copied)
    (copied / "report").unlink()
    (copied / "report").mkdir()
    (copied / "report" / "figures").symlink_to(outside)
    with pytest.raises(DataError, match="figures: a link"):
        write_report(copied)
    (copied / "report" / "figures").unlink()
    (copied / "report" / "figures").mkdir()
    for name in ("report/report.md", "report/report.json", "report/figures/course.svg"):
        (copied / name).unlink(missing_ok=True)
        (os.link if "json" in name else os.symlink)(outside / "course.svg", copied / name)
    write_report(copied)
    assert os.listdir(outside) == ["course.svg"] and (outside / "course.svg").read_text() == "mine"
    assert (copied / "report" / "figures" / "course.svg").stat().st_size > 100


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("change", [fifo, folder, device, sparse], ids=lambda change: change.__name__)
def test_only_a_regular_manifest_is_read(
    change: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed_and_told(change, "run.json", tmp_path, capsys, ["overwatch", "--once"])


@pytest.mark.parametrize("change", [fifo, folder, device], ids=lambda change: change.__name__)
def test_only_regular_segments_are_read(
    change: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed_and_told(change, "events-00001.jsonl", tmp_path, capsys, ["report"], ["query"], ["overwatch", "--once"])


@pytest.mark.slow
def test_a_segment_without_end_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed_and_told(sparse, "events-00001.jsonl", tmp_path, capsys, ["report"], ["query"], ["overwatch", "--once"])


def listed_and_told(
    change: Callable[[Path], None],
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *commands: list[str],
) -> None:
    """A run one file of which is ``change``d stands in no other's way, and every command ends in a line at most."""
    odd, other = (write_run(tmp_path / "runs", story(), run_id=run_id) for run_id in ("odd", "other"))
    change(odd / name)
    assert main(["runs", str(other.parent)]) == 0
    assert "digits" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("other"))
    for command in commands:
        more = ["select count(*) from events"] if command == ["query"] else []
        status, said = main([*command, str(odd), *more]), capsys.readouterr()
        assert status in (0, 1, 2) and len(said.err.splitlines()) <= 1 and "Traceback" not in said.err


DEEP = "[" * 800 + "]" * 800


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'{{"event_type":"TRAINING_STARTED","data":{{"a":{DEEP}}}}}', "nested deeper than 64 levels"),
        ('{"event_type":"TRAINING_STARTED","data":{"a":}}', "not JSON"),
        ('{"event_type":"TRAINING_STARTED","epoch":1e999}', "out of range"),
        ('{"event_type":"TRAINING_STARTED","epoch":3000000000}', "2147483647"),
        ('{"event_type":"TRAINING_STARTED","timestamp":1e300}', "<="),
        ('{"event_type":"TRAINING_STARTED","seq":"7"}', "Expected `int"),
        ("nothing", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_line_that_is_no_event_under_a_checksum_that_is_right(
    line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import esper.nissa.journal as journal

    other, (first, *rest) = write_run(tmp_path, story(), run_id="other"), story()
    lines = {id(first): line.encode() + b"\n"}
    monkeypatch.setattr(journal, "read_event_ids", lambda lines: [msgspec.json.decode(b"{}", type=TelemetryEventIds)])
    monkeypatch.setattr(journal, "encode", lambda event: lines.get(id(event)) or journal_encode(event))
    path = tmp_path / RUN_ID
    path.mkdir()
    with JournalWriter(path, RUN_ID, config=JournalConfig(batch_seconds=3600)) as writer:
        for event in (*rest, first):
            writer(event)
    monkeypatch.undo()
    assert main(["runs", str(other.parent)]) == 0
    assert listed("other", capsys.readouterr().out)
    assert main(["query", str(path), "select count(*) from events"]) == 0
    assert says in capsys.readouterr().err
    assert main(["overwatch", "--once", str(path)]) == 0
    assert says in capsys.readouterr().out
    assert main(["report", str(path)]) in (0, 1)


def listed(name: str, text: str) -> bool:
    """Whether the run is in the table, with its task."""
    return any(line.split()[0] == name and "digits" in line.split() for line in text.splitlines() if line)


class TelemetryEventIds(msgspec.Struct):
    seq: int | None = None


from esper.nissa.wire import encode as journal_encode  # noqa: E402


def test_reading_a_run_imports_nothing_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil_part.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def named(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: named(item, name) for name, item in value.items()}
        return "evil_part:thing" if key in ("task", "policy", "blueprint") else value

    path = write_run(tmp_path, (msgspec.structs.replace(event, data=named(event.data)) for event in story()))
    for command in (["runs", str(tmp_path)], ["report", str(path)], ["overwatch", "--once", str(path)]):
        assert main(command) == 0
    assert "evil_part:thing" in capsys.readouterr().out and "evil_part" not in sys.modules
