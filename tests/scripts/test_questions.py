"""``esper query`` and ``esper mirror`` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.scripts.main import main
from karn.journals import write_run
from karn.streams import story

pytest.importorskip("duckdb")

SQL = "select slot_id, outcome, removal_cost from seeds"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_run(tmp_path_factory.mktemp("runs"), story()))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ([], "blocks_1  kept     1.6"),
        (["--csv"], "slot_id,outcome,removal_cost\nblocks_1,kept,1.6\n"),
        (["--json"], '{"slot_id":"blocks_1","outcome":"kept","removal_cost":1.6}\n'),
    ],
)
def test_a_question_in_every_form(run: str, form: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", run, SQL, *form]) == 0
    assert said in capsys.readouterr().out


def test_a_mistake_in_the_question_is_one_line(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", run, "select nothing from seeds"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_journal_that_is_torn_answers_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, story())
    journal = path / "events-00001.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[: data.rindex(b'{"commit"')])
    assert main(["query", str(path), "select count(*) n from epochs", "--json"]) == 0
    out, err = capsys.readouterr()
    assert 0 < json.loads(out)["n"] <= 24 and "not committed" in err


@pytest.mark.slow  # pyarrow takes seconds to import
def test_parquet(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert main(["query", run, SQL, "--parquet", str(tmp_path / "seeds.parquet")]) == 0
    assert (tmp_path / "seeds.parquet").read_bytes().startswith(b"PAR1")
    assert capsys.readouterr().out.startswith("1 rows in")


def test_a_mirror_says_where_it_is(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboardX")
    assert main(["mirror", run, "--to", "tensorboard", "--into", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path) in out and out.endswith(" points\n") and list(tmp_path.rglob("events.out.*"))
