from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from esper.leyline import DataError, files
from esper.leyline.files import Folder, open_regular, read_regular, write_all, write_atomically


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


def test_links_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to("folder")
    assert read_regular(tmp_path / "file", 4) == read_regular(tmp_path / "link", 4, follow=True) == b"1234"
    for name, says in (
        ("link", "link: a link"),
        ("pipe", "pipe: not a regular file"),
        ("folder", "not a regular file"),
    ):
        with pytest.raises(DataError, match=says):
            read_regular(tmp_path / name, 4)
    with pytest.raises(DataError, match="file: 4 bytes; at most 3 are read"):
        read_regular(tmp_path / "file", 3)
    with pytest.raises(DataError, match="not a regular file"):
        read_regular("/dev/zero", 4)
    with Folder.open(tmp_path) as folder:
        assert folder.read("file", 4) == b"1234" and folder.is_folder("folder") and not folder.is_folder("to-folder")
        for refused in (lambda: folder.read("link", 4), lambda: folder.folder("to-folder", make=True)):
            with pytest.raises(DataError, match=f"{tmp_path}/.*link|{tmp_path}/to-folder: a link"):
                refused()
    with pytest.raises(DataError, match="a link"):
        Folder.open(tmp_path / "to-folder", follow=False)


def test_writing_replaces_links_and_never_follows_them(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    outside.write_bytes(b"mine")
    (inside / "soft").symlink_to(outside)
    os.link(outside, inside / "hard")
    with Folder.open(inside) as folder:
        for name in ("soft", "hard"):
            folder.write(name, b"new")
            assert (inside / name).read_bytes() == b"new" and not (inside / name).is_symlink()
    assert outside.read_bytes() == b"mine"


def test_what_a_folder_is_does_not_change_with_its_path(tmp_path: Path) -> None:
    """Whoever puts a link in the place of a folder that is open wins nothing."""
    (tmp_path / "real").mkdir()
    (tmp_path / "trap").mkdir()
    with Folder.open(tmp_path) as run, run.folder("real") as folder:
        (tmp_path / "real").rename(tmp_path / "moved")
        (tmp_path / "real").symlink_to("trap")
        folder.write("file", b"x")
        folder.make("more")
        folder.remove("more")
    assert os.listdir(tmp_path / "trap") == [] and os.listdir(tmp_path / "moved") == ["file"]


def test_what_fails_says_which_file_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "run.json"
    path.write_text("{}")
    with open_regular(path) as file:
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, file.fileno())
        os.close(folder)
        with pytest.raises(OSError, match=re.escape(str(path))):
            file.read()
    monkeypatch.setattr(os, "fsync", failing)
    with Folder.open(tmp_path) as held, pytest.raises(OSError, match=r"Input/output error: .*report\.md"):
        held.create("report.md", [b"half"])
