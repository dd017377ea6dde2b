from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from esper.leyline import files
from esper.leyline.files import Folder, write_all, write_atomically


def test_write_all_goes_on_where_the_system_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    descriptor = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
    write_all(descriptor, b"0123456789")
    os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == b"0123456789"


@pytest.mark.parametrize("step", ["write_all", "os.fsync", "os.replace"])
def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    owner = os if step.startswith("os.") else files
    with monkeypatch.context() as patch:
        patch.setattr(owner, step.removeprefix("os."), fail)
        with pytest.raises(OSError, match="full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["run.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["run.json"]


def test_what_killed_writes_have_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".run.json.0a1b2c3d.tmp", "run.json", ".hidden", ".x.0a1b.tmp", "x.0a1b2c3d.tmp"):
        (tmp_path / name).write_text("half")
    with Folder.open(tmp_path) as folder:
        folder.sweep()
        assert sorted(folder.names()) == [".hidden", ".x.0a1b.tmp", "run.json", "x.0a1b2c3d.tmp"]
