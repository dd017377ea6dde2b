"""``esper.report``: every table of a run as a frame, and a run as a notebook shows it."""

from __future__ import annotations

import builtins
import math
import re
import subprocess
import sys
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import esper
from esper.karn.notebook import evidence_html
from esper.karn.report import write_report
from esper.karn.store import VIEWS, Result
from esper.karn.tables import Frame
from esper.leyline import MissingExtraError, UsageError
from karn.journals import write_run
from karn.networks import Grows, grown_run, transformer
from karn.streams import story

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), story())


def test_every_named_view_is_a_frame_by_attribute_and_item(run: Path) -> None:
    told = esper.report(run)
    assert told.names == tuple(VIEWS) == tuple(told) and set(VIEWS) < set(dir(told))
    for name in told.names:
        frame = told[name]
        assert getattr(told, name) is frame
        assert len(frame.to_pandas()) == frame.to_arrow().num_rows == len(frame) == len(frame.rows)
        assert list(frame.to_pandas().columns) == frame.to_arrow().column_names == frame.columns
    assert told.seeds.to_pandas()["outcome"].tolist() == ["kept"]
    assert told.query("SELECT count(*) AS n FROM events").rows == [(len(story()),)]


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    told = esper.report(str(run))
    with pytest.raises(UsageError, match="unknown table 'epoch'; did you mean 'epochs'"):
        told["epoch"]
    with pytest.raises(AttributeError, match="no 'epoch'; its tables are runs, epochs,"):
        told.epoch  # noqa: B018
    with pytest.raises(UsageError, match="not a run directory"):
        esper.report(tmp_path)


def test_values_are_exact_in_both_forms() -> None:
    rows = [(1, 2**63 - 1, None, math.nan, True, "a"), (None, 2**70, 1.5, 0.5, None, None)]
    frame = Frame(Result(["whole", "huge", "some", "nan", "flag", "text"], rows))
    pandas = frame.to_pandas()
    assert str(pandas["whole"].dtype) == "Int64" and pandas["huge"].tolist() == [2**63 - 1, 2**70]
    assert str(pandas["flag"].dtype) == "boolean" and pandas["some"].tolist()[1] == 1.5
    arrow = frame.to_arrow()
    assert arrow["huge"].to_pylist() == [Decimal(2**63 - 1), Decimal(2**70)]
    assert arrow["some"].to_pylist() == [None, 1.5] and math.isnan(arrow["nan"].to_pylist()[0])
    assert Frame(Result(["seed"], [(7879204788149259239,), (None,)])).to_pandas()["seed"][0] == 7879204788149259239


@pytest.mark.parametrize(("package", "form"), [("pandas", "to_pandas"), ("pyarrow", "to_arrow")])
def test_a_missing_package_is_one_line_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, package: str, form: str
) -> None:
    real = builtins.__import__

    def refused(name: str, *more: Any, **named: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(
        MissingExtraError, match=r"needs the extra 'notebook': in a checkout of Esper, pip install '\.\["
    ):
        getattr(Frame(Result(["a"], [(1,)])), form)()


def test_no_torch_is_loaded(run: Path) -> None:
    code = f"import sys, esper; esper.report({str(run)!r})._repr_html_(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Seen(HTMLParser):
    """Tags and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


EVIL = '<img src=x onerror="alert(1)">\u202e\x1b[31m'


def test_a_notebook_shows_verdict_table_seeds_network_and_course_and_no_markup_of_a_run(tmp_path: Path) -> None:
    seeds = [Grows("layer_0_attention_query", EVIL, "FOSSILIZED", 1.0, 4.21)]
    events = grown_run(transformer(2), seeds)
    events[0].data |= {"task": EVIL, "policy": EVIL}
    told = esper.report(write_run(tmp_path, events))
    page = told._repr_html_()
    seen = Seen(page)
    assert seen.tags.count("img") == 1, "the course alone"
    assert "svg" in seen.tags and seen.tags.count("table") == 3 and "script" not in seen.tags
    assert not re.search("[\u202e\x1b]", page)
    assert any("4.21" in text for text in seen.texts) and f"{told.evidence.verdict.headline}." in seen.texts
    assert page == told._repr_html_() and evidence_html(told.evidence, None).count("<svg") == 1
    assert EVIL not in repr(told) + str(told) + repr(told.evidence) and "\n" not in repr(told.evidence)


def test_the_course_is_the_report_s_own_where_there_is_one(run: Path) -> None:
    write_report(run)
    drawn = run / "report" / "figures" / "course.svg"
    drawn.write_text("<svg>mine</svg>")
    assert "PHN2Zz5taW5lPC9zdmc+" in esper.report(run)._repr_html_()


def test_a_long_frame_says_what_it_does_not_show() -> None:
    frame = Frame(Result(["<n>"], [(n,) for n in range(30)]))
    assert repr(frame).endswith("(30 rows, 10 not shown)") and "&lt;n&gt;" in frame._repr_html_()
    assert "10 more rows of 30" in frame._repr_html_()
    assert repr(Frame(Result(["n"], [(1,)]))).endswith("(1 row)")


def test_the_network_of_the_evidence_is_a_picture_of_its_own(run: Path) -> None:
    network = esper.report(run).evidence.network
    assert network is not None and network._repr_svg_().startswith("<svg")
