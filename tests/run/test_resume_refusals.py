"""What cannot be resumed is refused in one line, and nothing is written over."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cutting import Cut, run

import toy
from esper.leyline import TelemetryEventType as T
from esper.leyline import UsageError
from esper.nissa.journal import JournalWriter, Supersede
from esper.nissa.reader import read_journal
from esper.nissa.rundir import RunDirectory
from esper.run.config import RunConfig
from esper.run.resume import ResumeRequest, find
from esper.run.session import SessionConfig, open_session
from esper.scripts.main import main
from esper.tasks.base import TaskSpec
from esper.tolaria import checkpoint

TRAIN = ["train", "heuristic", "--task", "toy:toy_task", "--episodes", "2", "--max-epochs", "4", "--quiet"]
TRAIN += ["--compare", "static", "--checkpoint-every", "2", "--no-export"]


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    import torch._dynamo  # noqa: F401

    import esper.scripts.heuristic

    patch = pytest.MonkeyPatch()
    patch.setattr(esper.scripts.heuristic, "print_summary", lambda path, console: None)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def cut_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its second episode: two checkpoints, after epochs 4 and 6."""
    folder = tmp_path_factory.mktemp("cut")
    ended = run([*TRAIN, "--run-dir", str(folder / "run")], folder / "log", Cut(4, function="checkpoint.save"))
    assert ended.status == -9, ended.said
    return folder / "run"


@pytest.fixture
def cut_run(cut_once: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run"
    shutil.copytree(cut_once, path)
    return path


def fingerprint(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    before = fingerprint(path)
    assert main([*TRAIN[:4], "--resume", str(path), *flags]) in (1, 2)
    said = capsys.readouterr().err
    assert fingerprint(path) == before and len(said.splitlines()) == 1, said
    return said


def checkpoints(path: Path) -> list[Path]:
    """Oldest first."""
    return sorted((path / "checkpoints").iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def newer(path: Path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "version": 99}))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "file", "says"),
    [
        (flip, "tensors.safetensors", "sha256 differs"),
        (truncate, "state.json", "the manifest says"),
        (newer, "manifest.json", "version 99; this Esper reads"),
        (remove, "manifest.json", "No such file"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    damage: Callable[[Path], None], file: str, says: str, cut_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for saved in checkpoints(cut_run):
        damage(saved / file)
    assert says in refused(cut_run, capsys)


def test_behind_a_damaged_checkpoint_an_older_one_is_used_and_that_is_said(cut_run: Path, tmp_path: Path) -> None:
    older, newest = checkpoints(cut_run)
    flip(newest / "state.json")
    ended = run([*TRAIN[:4], "--resume", str(cut_run)], tmp_path / "log")
    assert ended.status == 0, ended.said
    (loaded,) = [event for event in read_journal(cut_run, validate=True) if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["path"] == str(older) and "sha256" in loaded.data["passed_over"][0]


def changed_data(task: TaskSpec) -> TaskSpec:
    train = replace(task.data.train, inputs=task.data.train.inputs + 1.0)
    return replace(task, data=type(task.data).of(train, task.data.validation, task.data.test, source="other"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed_data, "its data digest is"),
        (lambda task: replace(task, sites={"block0": "block0"}), "its slots is"),
        (lambda task: replace(task, blueprints=("norm",)), "its blueprints is"),
    ],
)
def test_another_subject_is_refused(
    change: Callable[[TaskSpec], TaskSpec],
    says: str,
    cut_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = change(toy.toy_task())
    monkeypatch.setattr(toy, "toy_task", lambda: other)
    assert says in refused(cut_run, capsys)


def test_settings_change_only_with_override_and_only_where_it_is_safe(
    cut_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "lr: None -> 0.5; seed: 0 -> 3. --override" in refused(cut_run, capsys, "--lr", "0.5", "--seed", "3")
    assert "lr cannot change in a resumed run" in refused(cut_run, capsys, "--lr", "0.5", "--override")
    assert "2 or more is legal" in refused(cut_run, capsys, "--episodes", "1", "--override")
    assert "max_epochs cannot change" in refused(cut_run, capsys, "--max-epochs", "9", "--override")


def test_a_run_can_be_made_longer_and_say_more(cut_run: Path, tmp_path: Path) -> None:
    more = ["--override", "--episodes", "3", "--telemetry-level", "debug"]
    ended = run([*TRAIN[:4], "--resume", str(cut_run), *more], tmp_path / "log")
    assert ended.status == 0, ended.said
    events = list(read_journal(cut_run, validate=True))
    (loaded,) = [event for event in events if event.event_type is T.CHECKPOINT_LOADED]
    assert loaded.data["overrides"] == ["episodes: 2 -> 3", "telemetry_level: normal -> debug"]
    assert [e.data["level"] for e in events if e.event_type is T.TELEMETRY_LEVEL_SET] == ["normal", "debug"]
    assert sum(event.event_type is T.EPISODE_ENDED for event in events) == 6
    (resume,) = RunDirectory.open(cut_run).manifest.details["resumes"]
    assert resume["overrides"] == loaded.data["overrides"]
    started = [event for event in events if event.event_type is T.TRAINING_STARTED]
    assert started[1].data["resumed_after_seq"] == loaded.data["after_seq"]


def test_what_keeps_a_resume_from_being_exact_is_said(cut_run: Path) -> None:
    past = find(ResumeRequest(cut_run), "heuristic", RunConfig, {"task": "toy:toy_task"})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert past.differences == [] and "bit for bit" in past.lines()[0]
        torch.set_num_threads(2)
        assert past.differences == ["threads: saved with 1, here 2"] and past.differences[0] in past.lines()
    finally:
        torch.set_num_threads(before)


def test_even_a_quiet_resume_on_another_processor_says_that_it_is_not_exact(
    cut_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**checkpoint.environment(), "cpu_capability": "ANOTHER"}
    monkeypatch.setattr(checkpoint, "environment", lambda gpus=(): here)
    ended = run([*TRAIN[:4], "--resume", str(cut_run)], tmp_path / "log")
    assert ended.status == 0 and "not exact: cpu_capability: saved with" in ended.said, ended.said


def test_what_is_over_or_was_never_saved(cut_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN[:4], "--resume", str(cut_run)], tmp_path / "log").status == 0
    assert "there is nothing to resume" in refused(cut_run, capsys)
    shutil.rmtree(cut_run / "checkpoints")
    assert "checkpoints: No such file" in refused(cut_run, capsys)
    assert main([*TRAIN[:4], "--resume", str(tmp_path / "nowhere")]) in (1, 2)
    assert main(["train", "heuristic", "--override"]) == 2


def test_a_journal_that_lacks_what_the_checkpoint_follows(cut_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = cut_run / "events-00001.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert "the journal ends at" in refused(cut_run, capsys)
    journal.write_bytes(b"".join(lines))
    flip(journal)
    assert "journal damaged at byte" in refused(cut_run, capsys)


def test_a_run_that_is_still_going(cut_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = RunDirectory.open(cut_run).run_id
    with JournalWriter(cut_run, run_id, supersede=Supersede("train", 10_000)):
        assert "another process is writing" in refused(cut_run, capsys)


def test_a_run_that_another_resume_completed_meanwhile(cut_run: Path, tmp_path: Path) -> None:
    """The lock is free again, and the checkpoint that was found before is not the end any more."""
    past = find(ResumeRequest(cut_run), "heuristic", RunConfig, {"task": "toy:toy_task"})
    assert run([*TRAIN[:4], "--resume", str(cut_run)], tmp_path / "log").status == 0
    before = fingerprint(cut_run)
    with pytest.raises(UsageError, match="another process went on with this run"):
        with open_session(SessionConfig("heuristic", resume=past.point)):
            pass
    assert fingerprint(cut_run) == before


def reseal(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's manifest and seal it anew, as whoever made it can."""
    path = saved / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest["extra"])
    digest = hashlib.sha256(json.dumps(manifest, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({**manifest, "sha256": digest}))


def test_code_that_only_a_checkpoint_names_is_not_imported(
    cut_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "code"
    evil.mkdir()
    (evil / "evil_task.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ntask = parts = None\n")
    monkeypatch.syspath_prepend(str(evil))
    assert main(["train", "heuristic", "--resume", str(cut_run)]) == 2
    assert "--task toy:toy_task" in capsys.readouterr().err
    harmless = {"task": "digits", "policy": "static", "compare": [], "blueprints": None}
    for name in harmless:
        value = ["evil_task:parts"] if name in ("compare", "blueprints") else "evil_task:parts"
        for saved in checkpoints(cut_run):
            reseal(saved, lambda extra, more={name: value}: extra["config"].update(harmless | more))  # type: ignore[misc]
        assert f"names code, {name} evil_task:" in refused_plainly(cut_run, capsys)
    assert not (tmp_path / "ran").exists()


def refused_plainly(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = fingerprint(path)
    assert main(["train", "heuristic", "--resume", str(path)]) in (1, 2)
    said = capsys.readouterr().err
    assert fingerprint(path) == before and len(said.splitlines()) == 1, said
    return said


HUB: dict[str, Any] = {"last_seq": "7", "others": [], "sampled": {"NONE": 1}, "level": "loud", "lifecycle_only": 1}


@pytest.mark.parametrize(
    "change",
    [
        *(lambda extra, key=key, value=value: extra["hub"].update({key: value}) for key, value in HUB.items()),
        lambda extra: extra.update(hub=None),
        lambda extra: extra.update(seconds=-1.0),
        lambda extra: extra.update(cpu_seconds="x"),
        lambda extra: extra.update(least={"episodes": None}),
        lambda extra: extra.pop("remarks"),
        lambda extra: extra.update(config=[]),
        lambda extra: extra["hub"].update(last_seq=10**30),
    ],
)
def test_a_resealed_checkpoint_is_refused_before_a_segment_is_opened(
    change: Callable[[dict[str, Any]], None], cut_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for saved in checkpoints(cut_run):
        reseal(saved, change)
    assert "not what a run's checkpoint says" in refused(cut_run, capsys)


def test_chance_that_cannot_be_restored_is_found_before_a_segment_is_opened(
    cut_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for saved in checkpoints(cut_run):
        state = json.loads((saved / "state.json").read_text())
        state["chance"]["random"][1][0] = -1
        content = json.dumps(state).encode()
        (saved / "state.json").write_bytes(content)
        manifest = json.loads((saved / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (saved / "manifest.json").write_text(json.dumps(manifest))
        reseal(saved, lambda extra: None)
    assert "not a state that this Esper" in refused(cut_run, capsys)
