"""``esper doctor``: one line per part, and a word where another project has our import name."""

from __future__ import annotations

from importlib import metadata

import pytest

from esper.scripts import doctor


def test_a_namesake_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.namesake() is None
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.0" if name == "esper" else real(name))
    line = doctor.namesake()
    assert line is not None and "\n" not in line
    assert "esper (3.0)" in line and "pip uninstall esper" in line and "esper-grow" in line
