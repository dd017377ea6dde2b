"""The cases that the page's own filter is held to as well (``web/tests/filter.test.ts``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from esper.karn.filter import parse
from esper.karn.schema import EnvironmentRow, FeedItem
from esper.leyline import UsageError

CASES: dict[str, Any] = json.loads((Path(__file__).parent / "filter_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["filter"])
def test_shared_cases(case: dict[str, Any]) -> None:
    if case.get("error"):
        with pytest.raises(UsageError):
            parse(case["filter"])
        return
    wanted = parse(case["filter"])
    items = [msgspec.convert(item, FeedItem) for item in CASES["items"]]
    rows = [msgspec.convert(row, EnvironmentRow) for row in CASES["rows"]]
    assert [item.id for item in items if wanted.item(item)] == case["items"]
    assert [row.env for row in rows if wanted.row(row)] == case["rows"]
