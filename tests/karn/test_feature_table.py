"""Each "yes" of the feature table names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "overwatch.md"


def rows(page: str) -> list[list[str]]:
    """Cells of the table's rows."""
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def untested(page: str) -> list[str]:
    """Rows that claim something without a test that is there."""
    found = []
    for name, ours, *_ in rows(page):
        named = re.search(r"`([\w/]+\.py)::(\w+)`", ours)
        known = named is not None and (TESTS / named[1]).is_file()
        if ours.startswith("no") and named is None:
            continue
        if not known or named is None or f"def {named[2]}(" not in (TESTS / named[1]).read_text(encoding="utf-8"):
            found.append(name)
    return found


@pytest.mark.skipif(not PAGE.is_file(), reason="docs are not here")
def test_each_claim_of_ours_has_its_test() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert len(rows(page)) > 20 and all(len(row) == 6 for row in rows(page))
    assert sum(row[1].startswith("no") for row in rows(page)) >= 4, "what we have not stands there, too"
    assert untested(page) == []
    assert untested(page.replace("test_live_frames", "test_gone")) == ["live views"]
