from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esper.karn import watch
from esper.karn.web import assets
from esper.leyline import UsageError
from esper.scripts import alerts, cli, overwatch
from karn.journals import write_run
from karn.streams import story


def test_once_prints_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, story()[:-1])
    assert overwatch.main([str(tmp_path), "--once"]) == 0
    said = capsys.readouterr().out
    assert "no event for" in said and "env 1" in said


def test_once_with_a_filter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, story())
    assert overwatch.main([str(run), "--once", "--filter", "env=0"]) == 0
    assert "STATE      completed after" in capsys.readouterr().out


def test_a_long_reading_says_how_far_it_is_each_second(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    reading = overwatch.ReadingProgress(lambda: now)
    for journal in range(2):
        for done in range(10, 110, 10):
            now = 100.0 * journal + done / 25
            reading(done, 100)
    said = [line.removeprefix("overwatch: reading the journal, ") for line in capsys.readouterr().err.splitlines()]
    assert said == ["40%", "70%", "100%"] * 2


@pytest.mark.parametrize("face", ["--once", "--tui", "page"])
def test_every_face_says_its_first_reading(
    face: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []
    monkeypatch.setattr(overwatch, "ReadingProgress", lambda: lambda done, total: told.append(done))
    monkeypatch.setattr(watch, "LONG", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = write_run(tmp_path, story())
    if face == "--tui":
        tui = pytest.importorskip("esper.karn.tui", reason="needs the extra 'tui'")
        monkeypatch.setattr(tui.Overwatch, "run", lambda app: app.viewer)
    if face == "page":
        server = pytest.importorskip("esper.karn.web.server", reason="needs the extra 'web'")
        deck = server.Deck(run, progress=overwatch.ReadingProgress())
        assert deck.feed(None).watch.tick().clock.events == len(story())
    else:
        assert overwatch.main([str(run), face]) == 0
    assert told == sorted(told) and told[-1] == (run / "events-00001.jsonl").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "0 to 65535"),
        (["--filter", "env=1"], "--once"),
        (["--tui", "--once"], "not allowed with"),
        (["nowhere", "--once"], "no run 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as problem:
        overwatch.main(arguments)
    assert "\n" not in str(problem.value)


def test_beside_a_process_it_finds_the_run_that_the_process_writes(tmp_path: Path) -> None:
    script = (
        "import sys, time; from esper.nissa.rundir import RunDirectory; import os;"
        "RunDirectory.create(sys.argv[1], 'other', {'pid': 1});"
        "RunDirectory.create(sys.argv[1], 'mine', {'pid': os.getpid()}); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE)
    try:
        found = alerts.await_run(tmp_path, process.pid)
    finally:
        process.communicate()
    assert found == tmp_path / "mine"
    assert alerts.await_run(tmp_path / "elsewhere", process.pid) is None, "it is gone and has written nothing"


def test_alive() -> None:
    assert cli.alive(os.getpid()) and not cli.alive(None) and not cli.alive(2**22 + 1)


@pytest.mark.slow
def test_beside_a_run_it_prints_a_link_that_answers_and_leaves_after_the_run(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    httpx = pytest.importorskip("httpx")
    if assets.state() == "missing" and shutil.which("npm") is None:
        pytest.skip("the page is not built and there is no npm")
    run = tmp_path / "run"
    task = ["--task", "toy:toy_task", "--episodes", "1", "--max-epochs", "4000", "--quiet"]
    command = [sys.executable, "-m", "esper.scripts.main", "train", "heuristic", *task, "--run-dir", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(tmp_path)}
    trainer = subprocess.Popen([*command, "--overwatch"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert trainer.stdout is not None
        link = next(line for line in trainer.stdout if line.startswith("Overwatch: ")).split()[1]
        page, token = link.split("#token=")
        answer: dict[str, Any] = {}
        deadline = time.monotonic() + 60
        while "host" not in answer and time.monotonic() < deadline:  # vitals come with an event some seconds later
            answer = httpx.get(f"{page}api/snapshot", headers={"authorization": f"Bearer {token}"}).json()
            time.sleep(0.2)
        assert answer["run"]["state"] == "running" and answer["host"]["process_memory"] > 2**20
    finally:
        trainer.terminate()
        trainer.wait()
        trainer.stdout.close()
    deadline = time.monotonic() + overwatch.LINGER + 20
    with pytest.raises(httpx.ConnectError):
        while time.monotonic() < deadline:
            httpx.get(page)
            time.sleep(0.5)
