from __future__ import annotations

import math
from pathlib import Path

import pytest

from esper.leyline import DataError, UsageError
from esper.nissa import manifest as module
from esper.nissa.manifest import Git, Setting, decode_manifest, describe, encode_manifest, resolve


def test_flags_beat_file_beats_preset_beats_default() -> None:
    default = {"lr": 0.1, "seed": 1, "task": "digits", "epochs": None}
    settings = resolve(
        default, preset={"lr": 0.2, "seed": 2, "task": "text"}, file={"lr": 0.3, "seed": 3}, flag={"lr": 0.4}
    )
    assert settings == {
        "lr": Setting("flag", 0.4),
        "seed": Setting("file", 3),
        "task": Setting("preset", "text"),
        "epochs": Setting("default", None),
    }
    with pytest.raises(UsageError, match="unknown setting in the file 'epoch'; did you mean 'epochs'"):
        resolve(default, file={"epoch": 3})


def test_a_manifest_comes_back_as_it_was_with_none_and_infinity() -> None:
    given = {"config": resolve({"a": None, "b": math.inf, "c": [1, "x"]}), "seeds": {"order": 3}, "task": "digits"}
    manifest = describe("run", 1.5, given)
    assert manifest.details == {"task": "digits"} and manifest.values() == {"a": None, "b": math.inf, "c": [1, "x"]}
    assert decode_manifest(encode_manifest(manifest), Path("run.json")) == manifest
    assert manifest.packages["torch"] and len(manifest.host.digest) == 16


def test_a_setting_without_a_source_is_refused() -> None:
    with pytest.raises(UsageError, match="setting 'lr' has no source"):
        describe("run", 0.0, {"config": {"lr": 0.1}})


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff", b'{"schema":1}', b'{"schema":99}', b"[" * 9999])
def test_a_damaged_manifest_is_a_data_error_with_its_path(damage: bytes) -> None:
    with pytest.raises(DataError, match="^some/run.json: "):
        decode_manifest(damage, Path("some/run.json"))


def test_the_revision_is_absent_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._git(tmp_path / "missing") is None
    monkeypatch.setattr(module, "_run_git", lambda directory, *arguments: {"rev-parse": "abc"}.get(arguments[0]))
    assert module._git(tmp_path) == Git("abc", None)
