from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")

from esper.karn.web.typescript import typescript

COMMITTED = Path(__file__).parents[3] / "web" / "src" / "lib" / "schema.ts"


def test_the_committed_types_are_fresh() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == typescript(), (
        "run: python -m esper.karn.web.typescript web/src/lib/schema.ts"
    )


def test_absent_is_optional_and_never_null() -> None:
    text = typescript()
    figure = text.split("export interface Figure {")[1].split("}")[0]
    assert "epoch?: number;" in figure and "value: boolean | Num;" in figure
    snapshot = text.split("export interface Snapshot {")[1].split("}")[0]
    assert "null" not in snapshot and "host?: HostVitals;" in snapshot
