"""``esper.NAME``: what the package promises, lazily, and the page that says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import esper

PAGE = Path(__file__).parent.parent / "docs" / "api" / "index.rst"


def test_every_public_name_is_found_and_stands_on_the_page() -> None:
    page = PAGE.read_text()
    for name in esper.PUBLIC:
        assert getattr(esper, name) is not None
        assert f":: esper.{name}\n" in page
    assert set(dir(esper)) == {*esper.PUBLIC, "__version__"}


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'shrink'; it has .*grow"):
        esper.shrink  # noqa: B018


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, esper; esper.Metric; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
