from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.karn.filter import parse
from esper.karn.notes import LONGEST_NOTES, NOTES, Edit, Notes, delete, edit, read_notes
from esper.karn.runtable import chosen, run_about, run_table, text
from esper.leyline import DataError, UsageError
from esper.nissa.journal import JournalWriter
from esper.nissa.rundir import RunDirectory, list_runs
from esper.scripts import runs as command
from karn.journals import write_run
from karn.streams import story

HOSTILE = "<img src=x onerror=alert(1)> \u202eevil\u202c \x1b[31m \u0634\u0643\u0631\u0627 \ud83d".encode(
    "utf-8", "replace"
).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_run(tmp_path / "runs", story()[:3], run_id=name)
    return tmp_path / "runs"


def test_what_is_said_of_a_run_stands_beside_its_journal(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "a").iterdir()}
    assert read_notes(folder / "a") == Notes()
    made = edit(folder / "a", Edit(name=" first  try ", tag=["good", "base", "good"], notes="one\r\ntwo"))
    assert made == read_notes(folder / "a") == Notes(name="first try", tags=["base", "good"], notes="one\ntwo")
    assert edit(folder / "a", Edit(untag=["good"], archived=True)).tags == ["base"]
    assert {name: (folder / "a" / name).read_bytes() for name in before} == before
    assert {path.name for path in (folder / "a").iterdir()} == {*before, NOTES}, "nothing else is left behind"


def test_names_and_notes_of_any_text_are_kept_and_shown_as_text(folder: Path) -> None:
    edit(folder / "a", Edit(name=HOSTILE[:100], tags=[HOSTILE[:40].replace(",", "")], notes=HOSTILE + "x" * 100_000))
    assert len(read_notes(folder / "a").notes) > 100_000
    table = run_table(list_runs(folder), 0.0)
    row = table.rows[0]
    assert len(row.notes) == 200 and row.notes_length == len(HOSTILE) + 100_000
    shown = text(table, table.rows)
    assert "\x1b" not in shown and "\u202e" not in shown and "<img" in shown and max(map(len, shown.splitlines())) < 400


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Edit(name="x" * 201), "a name of 201 characters; at most 200"),
        (Edit(tag=["x" * 65]), "a tag of 65 characters"),
        (Edit(tags=[str(at) for at in range(33)]), "33 tags; at most 32"),
        (Edit(notes="x" * (LONGEST_NOTES + 1)), "at most 262,144"),
        (Edit(tag=["a,b"]), "commas stand between"),
    ],
)
def test_what_is_too_long_is_refused_and_changes_nothing(folder: Path, change: Edit, told: str) -> None:
    edit(folder / "a", Edit(name="kept"))
    with pytest.raises(UsageError, match=told):
        edit(folder / "a", change)
    assert read_notes(folder / "a") == Notes(name="kept")


@pytest.mark.parametrize("held", [b"{", b'{"name": 3}', b'{"other": 1}', b"[" * 100_000, b"\xff\xfe", b"1" * 50])
def test_notes_that_others_wrote_cannot_break_the_table(folder: Path, held: bytes) -> None:
    (folder / "a" / NOTES).write_bytes(held)
    with pytest.raises(DataError):
        read_notes(folder / "a")
    table = run_table(list_runs(folder), 0.0)
    assert [row.name for row in table.rows] == ["a", "b", "c"] and table.rows[0].notes_problem
    assert "damaged notes" in text(table, table.rows)
    with pytest.raises(DataError):
        edit(folder / "a", Edit(name="x"))
    assert (folder / "a" / NOTES).read_bytes() == held, "what cannot be read is not overwritten"
    assert run_about(folder / "a").title == ""


def test_a_link_or_a_pipe_is_neither_read_nor_written_through(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "a" / NOTES).symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "b" / NOTES)
    for name in ("a", "b"):
        with pytest.raises(DataError):
            edit(folder / name, Edit(name="x"))
    assert (tmp_path / "secret").read_text() == "{}"


def test_archived_runs_are_hidden_unless_asked_for_and_counted(folder: Path) -> None:
    edit(folder / "b", Edit(archived=True, tag=["old"]))
    table = run_table(list_runs(folder), 0.0)
    rows = chosen(table, parse(""))
    assert [row.name for row in rows] == ["a", "c"]
    assert "1 of 3 archived and not shown" in text(table, rows) and "hidden by the filter" not in text(table, rows)
    assert [row.name for row in chosen(table, parse(""), archived=True)] == ["a", "b", "c"]
    assert [row.name for row in chosen(table, parse("archived=yes"))] == ["b"]
    assert [row.name for row in chosen(table, parse("tag=old"), archived=True)] == ["b"]
    assert "1 of 3 hidden by the filter" in text(table, chosen(table, parse("run=a,b")))


def test_two_editors_lose_nothing_and_one_who_saw_something_older_is_told(folder: Path) -> None:
    def add(who: int) -> None:
        for at in range(10):
            edit(folder / "a", Edit(tag=[f"{who}-{at}"]))

    threads = [threading.Thread(target=add, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_notes(folder / "a").tags) == 30
    seen = run_about(folder / "a").digest
    edit(folder / "a", Edit(notes="theirs", before=seen))
    with pytest.raises(UsageError, match="edited by someone else"):
        edit(folder / "a", Edit(notes="mine", before=seen))
    assert read_notes(folder / "a").notes == "theirs"


def test_a_deleted_run_is_gone_and_one_that_is_written_is_not_deleted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (folder / "a" / "link").symlink_to(tmp_path)
    delete(folder / "a")
    assert [path.name for path in list_runs(folder)] == ["b", "c"] == sorted(os.listdir(folder))
    assert (tmp_path / "kept").read_text() == "kept", "what a link points to stays"
    live = RunDirectory.create(folder, "live", {}).path
    with JournalWriter(live, "live"):
        with pytest.raises(UsageError, match="is being written; stop it"):
            delete(live)
        edit(live, Edit(name="still runs"))
    delete(live)
    started = RunDirectory.create(folder, "started", {"pid": os.getpid()}).path
    with pytest.raises(UsageError, match="is being written"):
        delete(started)
    for name in ("a", "nowhere"):
        with pytest.raises(DataError, match="no such run"):
            delete(folder / name)
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="only runs are deleted"):
        delete(folder / "mine")
    (folder / "alias").symlink_to(folder / "b")
    with pytest.raises(DataError, match="a link"):
        delete(folder / "alias")
    assert (folder / "b").is_dir() and (folder / "mine" / "thesis.tex").exists()


def test_an_edit_while_the_run_is_deleted_is_told_and_leaves_nothing(folder: Path) -> None:
    """Many edits against one deletion: each is done before it, or told that there is no such run."""
    outcomes: list[str] = []

    def work() -> None:
        for at in itertools.count():
            try:
                edit(folder / "a", Edit(name=str(at)))
                outcomes.append("done")
            except (DataError, UsageError) as problem:
                outcomes.append(str(problem))
                return
            time.sleep(0.002)  # the lock is not fair: whoever takes it again at once keeps the others out

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 20:
        assert any(thread.is_alive() for thread in threads), outcomes
        time.sleep(0.001)
    delete(folder / "a")
    for thread in threads:
        thread.join()
    refused = {outcome for outcome in outcomes if outcome != "done"}
    assert len(refused) == 1 and "moved or deleted" in refused.pop() and outcomes[-1] != "done"
    assert sorted(os.listdir(folder)) == ["b", "c"]


def say(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = command.main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_names_tags_puts_away_and_deletes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = str(folder / "a")
    assert say([a, "--name", "first", "--tag", "good,base", "--note", "line 1\nline 2"], capsys)[:2] == (
        0,
        "1 run changed\n",
    )
    _, out, _ = say([str(folder)], capsys)
    assert out.splitlines()[1].split()[:3] == ["a", "first", "base,good"]
    assert "  line 1\n  line 2\n" in say([a], capsys)[1]
    assert say([str(folder), "--filter", "run=a,b", "--untag", "good", "--archive"], capsys)[1] == "2 runs changed\n"
    assert "2 of 3 archived" in say([str(folder)], capsys)[1]
    assert read_notes(folder / "a").tags == ["base"]
    assert say([str(folder), "--filter", "archived=yes", "--unarchive"], capsys)[1] == "2 runs changed\n"
    assert say([a, "--name", ""], capsys)[0] == 0 and read_notes(folder / "a").name == ""
    assert say([str(folder), "--filter", "tag=base", "--delete", "--yes"], capsys)[1] == "1 run deleted\n"
    live = RunDirectory.create(folder, "live", {}).path
    with JournalWriter(live, "live"):
        status, out, err = say([str(folder), "--filter", "run=live,b", "--delete", "--yes"], capsys)
    assert (status, out) == (1, "1 run deleted\n") and "is being written" in err and not (folder / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--archive"], "all 3 runs"),
        (["--delete", "--yes"], "all 3 runs"),
        (["--filter", "run=a", "--delete"], "nobody is there to answer"),
        (["--filter", "run=a", "--delete", "--yes", "--name", "x"], "nothing that could be called"),
        (["--yes"], "goes with --delete"),
        (["--archive", "--delete"], "not allowed with"),
    ],
)
def test_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(UsageError, match=told):
        command.main([str(folder), *arguments])
    assert len(list_runs(folder)) == 3


def test_a_person_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, left in (("n\n", 3), ("y\n", 2)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        say([str(folder / "a"), "--delete"], capsys)
        assert len(list_runs(folder)) == left


def test_notes_from_standard_input_of_any_bytes(folder: Path) -> None:
    ran: Any = subprocess.run(
        [sys.executable, "-m", "esper.scripts.main", "runs", str(folder / "a"), "--note", "-"],
        input=b"caf\xc3\xa9 \x1b[31m\nsecond\n",
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert msgspec.json.decode((folder / "a" / NOTES).read_bytes())["notes"] == "café \x1b[31m\nsecond"
