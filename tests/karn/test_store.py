from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from esper.karn.store import VIEWS, SqlStore
from esper.leyline import MissingExtraError, TelemetryEvent, UsageError
from karn.journals import write_run
from karn.streams import Recorder, begin, begin_episode, epoch_done, random_run, story

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqlStore:
    return SqlStore([write_run(tmp_path_factory.mktemp("run"), story())])


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_can_be_asked(store: SqlStore, view: str) -> None:
    columns = store.query(f"SELECT * FROM {view}").columns
    assert "run_id" in columns


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT task, policy, status FROM runs", [("digits", "heuristic", "completed")]),
        ("SELECT count(*), count(validation_metric) FROM epochs", [(24, 23)]),
        ("SELECT slot_id, blueprint, outcome, end_epoch FROM seeds", [("blocks_1", "conv3", "kept", 11)]),
        ("SELECT gate, count(*), sum(CAST(passed AS INT)) FROM gates GROUP BY 1 ORDER BY 1", None),
        ("SELECT outcome FROM actions", [("issued",), ("executed",)]),
        ("SELECT event_type FROM anomalies", [("GOVERNOR_PANIC",), ("GOVERNOR_ROLLBACK",)]),
        ("SELECT max(train_ms) FROM throughput WHERE env_id = 0", [(50.0,)]),
        ("SELECT count(*) FROM rewards", [(0,)]),
        ("SELECT checks_failed FROM gates WHERE epoch = 9", [(["removal_cost=0.4"],)]),
    ],
)
def test_answers(store: SqlStore, sql: str, expected: list[tuple[object, ...]] | None) -> None:
    rows = store.query(sql).rows
    assert rows == expected if expected is not None else rows == [("G0", 1, 1), ("G2", 2, 1), ("G5", 2, 1)]


def test_nan_infinity_and_absent_stay_apart(tmp_path: Path) -> None:
    rec = Recorder()
    begin(rec)
    begin_episode(rec, 0)
    for epoch, loss in enumerate((float("nan"), float("inf"), 0.0), 1):
        epoch_done(rec, 0, epoch, None, validation_loss=loss)
    epoch_done(rec, 0, 4, None)
    with SqlStore([write_run(tmp_path, rec.events)]) as store:
        result = store.query("SELECT validation_loss FROM epochs ORDER BY epoch")
    assert result.csv() == 'validation_loss\nNaN\nInfinity\n0.0\n""\n'
    assert [json.loads(line) for line in result.json().splitlines()] == [
        {"validation_loss": "NaN"},
        {"validation_loss": "Infinity"},
        {"validation_loss": 0.0},
        {},
    ]
    assert result.text().splitlines()[2:] == ["NaN", "∞", "0", "–", "(4 rows)"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY events TO 'out.csv'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "ATTACH 'other.db'",
        "SELEC",
        "SELECT nothing FROM runs",
    ],
)
def test_locked_down_and_errors_in_one_line(
    store: SqlStore, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        store.query(sql)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def _cut(events: list[TelemetryEvent], path: Path) -> int:
    journal = path / "events-00001.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[: data.rindex(b'{"commit"') - 7])
    return len(events)


def test_a_torn_line_is_no_row(tmp_path: Path) -> None:
    events = random_run(4)
    path = write_run(tmp_path, events)
    _cut(events, path)
    with SqlStore([path]) as store:
        ((count, empty),) = store.query("SELECT count(*), sum(CAST(event_type IS NULL AS INT)) FROM events").rows
        assert 0 < count < len(events) and empty == 0
        assert [damage.kind for damage in store.damage] == ["torn"]


def test_several_runs(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, story(), run_id="a"), write_run(tmp_path, random_run(1), run_id="b")]
    with SqlStore(paths) as store:
        assert [row[0] for row in store.query("SELECT run_id FROM runs ORDER BY 1").rows] == ["a", "b"]


def test_rows_are_the_journal(tmp_path: Path) -> None:
    events = random_run(8)
    with SqlStore([write_run(tmp_path, events)]) as store:
        rows = store.query("SELECT event_type, seq, env_id, epoch FROM events ORDER BY row_id").rows
    assert rows == [(event.event_type.value, event.seq, event.env_id, event.epoch) for event in events]


@pytest.mark.slow  # pyarrow takes seconds to import
def test_parquet(store: SqlStore, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert store.parquet("SELECT epoch, validation_metric FROM epochs WHERE env_id = 0", tmp_path / "x.parquet") == 12
    assert parquet.read_table(tmp_path / "x.parquet").num_rows == 12


def test_without_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match="extra 'query'"):
        SqlStore([tmp_path])


def test_an_empty_journal(tmp_path: Path) -> None:
    with SqlStore([write_run(tmp_path, [])]) as store:
        assert store.query("SELECT * FROM epochs").rows == []


@pytest.mark.parametrize("nothing", ["", "   ", ";", "--"])
def test_no_statement_is_said_so(nothing: str, tmp_path: Path) -> None:
    with SqlStore([write_run(tmp_path, story())]) as store, pytest.raises(UsageError, match="query: "):
        store.query(nothing)


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with SqlStore([write_run(tmp_path, story())]) as store:
        answer = store.query("select 1 as a, 2 as a, 3 as a_1, 4 as a")
    assert answer.columns == ["a", "a_2", "a_1", "a_3"]
    assert answer.json() == '{"a":1,"a_2":2,"a_1":3,"a_3":4}\n'
