from __future__ import annotations

import re
from pathlib import Path

import pytest

from esper.leyline import DataError, UsageError
from esper.nissa.manifest import Setting
from esper.nissa.rundir import RunDirectory, list_runs, new_run_id


def test_run_ids_sort_by_time_and_do_not_collide() -> None:
    ids = [new_run_id() for _ in range(5_000)]
    assert ids == sorted(ids) and len({name[:22] for name in ids}) == len(ids)
    assert re.fullmatch(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{8}", ids[0])


def test_a_run_is_created_and_opened(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "runs", manifest={"config": {"lr": Setting("flag", 0.1)}, "seeds": {"a": 1}})
    assert RunDirectory.open(run.path) == run
    assert run.path.name == run.run_id and run.manifest.seeds == {"a": 1}
    assert {path.name for path in run.path.iterdir()} == {"run.json"}
    assert [path.parent for path in (run.checkpoints, run.report, run.model)] == [run.path] * 3
    second = RunDirectory.create(tmp_path / "runs", "zz")
    assert list_runs(tmp_path / "runs") == [run.path, second.path] and list_runs(tmp_path / "none") == []


def test_a_used_unwritable_or_oddly_named_directory_is_refused_plainly(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "a")
    with pytest.raises(UsageError, match="in use already; resume it or choose another run id"):
        RunDirectory.create(tmp_path, "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written: Not a directory"):
        RunDirectory.create(tmp_path / "file")
    for name in ("../b", "b/c", "."):
        with pytest.raises(UsageError, match="not a plain folder name"):
            RunDirectory.create(tmp_path, name)
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path, "empty").path == tmp_path / "empty"
    assert RunDirectory.open(run.path).run_id == "a"


def test_what_is_no_run_or_a_damaged_one_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a run directory \(no run.json\)"):
        RunDirectory.open(tmp_path)
    run = RunDirectory.create(tmp_path, "a")
    manifest = run.path / "run.json"
    manifest.write_bytes(manifest.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged manifest"):
        RunDirectory.open(run.path)
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        RunDirectory.open(run.path)


def test_what_killed_writes_have_left_is_swept(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "run")
    elsewhere = tmp_path / "elsewhere"
    for folder in (run.report, elsewhere):
        folder.mkdir()
    run.model.symlink_to(elsewhere)
    left = [folder / ".report.md.0a1b2c3d.tmp" for folder in (run.path, run.report, elsewhere)]
    for path in left:
        path.write_text("half")
    run.sweep()
    assert [path.exists() for path in left] == [False, False, True], "and nothing behind a link"
