"""``esper query RUN "select ..."``: SQL over what a journal has committed, nothing else.

DuckDB is fed the committed lines with explicit columns, so a torn line can never become a row. User SQL runs with no
access to files or network and cannot change that.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from esper.karn.parts import wire_safe
from esper.karn.schema import Damage
from esper.karn.source import damage_of, report_damage
from esper.karn.words import ABSENT, figure, moment
from esper.leyline import DataError, MissingExtraError, UsageError, visible
from esper.leyline.decoding import told
from esper.leyline.text import ascii_json
from esper.nissa.reader import read_journal

_COLUMNS: Final = {
    "event_type": "VARCHAR",
    "timestamp": "DOUBLE",
    "t_mono": "DOUBLE",
    "producer": "VARCHAR",
    "seq": "BIGINT",
    "schema": "INTEGER",
    "episode": "INTEGER",
    "epoch": "INTEGER",
    "env_id": "INTEGER",
    "slot_id": "VARCHAR",
    "seed_id": "VARCHAR",
    "severity": "VARCHAR",
    "message": "VARCHAR",
    "data": "JSON",
}


def _pick(names: str, kind: str) -> str:
    """Columns taken from the payload; what was not measured is NULL, NaN stays NaN."""
    return ", ".join(f"CAST(data->>'$.{name}' AS {kind}) AS {name}" for name in names.split())


_WHERE = "run_id, env_id, episode, epoch"

VIEWS: Final = {
    "runs": f"""
        SELECT s.run_id, {_pick("kind task policy device", "VARCHAR")}, {_pick("episodes envs max_epochs", "INTEGER")},
               s.timestamp AS started, e.status, e.seconds, e.timestamp AS ended
        FROM (SELECT * FROM events WHERE event_type = 'TRAINING_STARTED'
              QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY row_id) = 1) s
        LEFT JOIN (SELECT run_id, timestamp, {_pick("status", "VARCHAR")}, {_pick("seconds", "DOUBLE")}
                   FROM events WHERE event_type = 'TRAINING_ENDED'
                   QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY row_id DESC) = 1) e
        ON e.run_id = s.run_id""",
    "epochs": f"""
        SELECT {_WHERE}, timestamp, {_pick("arm", "VARCHAR")},
               {_pick("validation_metric validation_loss train_loss host_gradient_norm learning_rate", "DOUBLE")},
               {_pick("parameters live_seeds", "BIGINT")}
        FROM events WHERE event_type = 'EPOCH_COMPLETED'""",
    "throughput": f"""
        SELECT {_WHERE}, timestamp,
               {_pick("train_ms validate_ms counterfactual_ms input_wait_ms policy_ms", "DOUBLE")}
        FROM events WHERE event_type = 'EPOCH_COMPLETED'""",
    "episodes": f"""
        SELECT run_id, env_id, episode, timestamp, {_pick("arm policy status", "VARCHAR")}, {_pick("seed", "BIGINT")},
               {_pick("validation_metric validation_loss test_metric test_loss seconds", "DOUBLE")},
               {_pick("epochs host_parameters total_parameters train_macs total_macs inference_macs", "HUGEINT")}
        FROM events WHERE event_type = 'EPISODE_ENDED'""",
    "seeds": f"""
        SELECT g.run_id, g.env_id, g.episode, g.slot_id, g.seed_id, g.epoch AS germinated_epoch,
               {_pick("blueprint incubation", "VARCHAR")}, {_pick("parameters", "BIGINT")},
               coalesce(e.outcome, 'undecided') AS outcome, e.epoch AS end_epoch, e.reason, e."by", e.removal_cost
        FROM (SELECT * FROM events WHERE event_type = 'SEED_GERMINATED') g
        LEFT JOIN (SELECT run_id AS r, env_id AS v, episode AS p, seed_id AS s, epoch,
                          if(event_type = 'SEED_FOSSILIZED', 'kept', 'pruned') AS outcome,
                          {_pick("reason by", "VARCHAR").replace("AS by", 'AS "by"')},
                          {_pick("removal_cost", "DOUBLE")}
                   FROM events WHERE event_type IN ('SEED_FOSSILIZED', 'SEED_PRUNED')) e
        ON e.r = g.run_id AND e.s = g.seed_id AND e.v IS NOT DISTINCT FROM g.env_id
           AND e.p IS NOT DISTINCT FROM g.episode""",
    "gates": f"""
        SELECT {_WHERE}, timestamp, slot_id, seed_id, {_pick("gate target_stage", "VARCHAR")},
               {_pick("passed", "BOOLEAN")}, CAST(data->'$.checks_failed' AS VARCHAR[]) AS checks_failed, message,
               data->'$.checks' AS checks
        FROM events WHERE event_type = 'SEED_GATE_EVALUATED'""",
    "counterfactuals": f"""
        SELECT {_WHERE}, timestamp, slot_id, seed_id,
               {_pick("removal_cost removal_cost_se removal_cost_loss probe_gain probe_gain_loss shapley", "DOUBLE")},
               {_pick("interaction all_off_metric alpha passes", "DOUBLE")}, {_pick("examples", "BIGINT")}
        FROM events WHERE event_type = 'COUNTERFACTUAL_COMPUTED'""",
    "actions": f"""
        SELECT {_WHERE}, timestamp, lower(replace(event_type, 'COMMAND_', '')) AS outcome,
               {_pick("op slot blueprint reason why_not", "VARCHAR")}, data->'$.evidence' AS evidence
        FROM events WHERE event_type LIKE 'COMMAND_%'""",
    "rewards": f"""
        SELECT {_WHERE}, timestamp, event_type, data FROM events
        WHERE event_type = 'REWARD_COMPUTED'
           OR (event_type = 'ANALYTICS_SNAPSHOT' AND data->>'$.kind' = 'reward_summary')""",
    "updates": f"""
        SELECT {_WHERE}, timestamp, {_pick("lr grad_norm update_time_ms policy_loss value_loss", "DOUBLE")}, data
        FROM events WHERE event_type = 'PPO_UPDATE_COMPLETED'""",
    "anomalies": f"""
        SELECT {_WHERE}, timestamp, event_type, severity, slot_id, seed_id, {_pick("reason", "VARCHAR")}, message, data
        FROM events
        WHERE severity IN ('warning', 'error', 'critical')
           OR (event_type IN ('TRAINING_ENDED', 'EPISODE_ENDED') AND data->>'$.status' <> 'completed')
           OR event_type IN ('GOVERNOR_PANIC', 'GOVERNOR_ROLLBACK', 'TRANSITION_VETOED', 'ISOLATION_VIOLATION',
                             'TELEMETRY_DROPPED')""",
}
"""Named view -> its SQL over ``events`` (one row per committed event, ``data`` as JSON)."""


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of an answer. SQL's NULL is ``None``: not measured."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def text(self) -> str:
        """An aligned table for a terminal."""
        head = self.columns
        rows = [head, *([_cell(*cell) for cell in zip(row, head, strict=True)] for row in self.rows)]
        cells = [[visible(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines) + f"\n({len(self.rows)} row{'s' if len(self.rows) != 1 else ''})\n"

    def csv(self, exact: bool = True) -> str:
        """CSV; an unmeasured value is an empty cell, NaN is ``NaN``. What is not ``exact`` is fit for a terminal."""
        spelled = _spelled if exact else lambda value: visible(_spelled(value))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(map(spelled, self.columns))
        writer.writerows([["" if value is None else spelled(value) for value in row] for row in self.rows])
        return out.getvalue()

    def json(self) -> str:
        """One object per line; an unmeasured value has no key."""
        encoder = msgspec.json.Encoder(enc_hook=str, decimal_format="number")
        return "".join(
            ascii_json(
                encoder.encode(
                    {name: wire_safe(value) for name, value in zip(self.columns, row, strict=True) if value is not None}
                )
            ).decode()
            + "\n"
            for row in self.rows
        )


class SqlStore:
    """The committed events of one or more runs, to be asked in SQL.

    Raises :class:`MissingExtraError` without DuckDB and ``DataError`` for a directory without a journal.
    """

    def __init__(self, directories: Iterable[str | Path]) -> None:
        try:
            import duckdb
        except ImportError:
            raise MissingExtraError("asking in SQL", "query") from None
        self._duckdb = duckdb
        self.damage: list[Damage] = []
        """What the readers met; rows come from before it."""
        self._connection = duckdb.connect(":memory:")
        try:
            self._load([Path(directory) for directory in directories])
            for name, sql in VIEWS.items():
                self._connection.execute(f"CREATE VIEW {name} AS {sql}")
            for setting in ("enable_external_access = false", "lock_configuration = true"):
                self._connection.execute(f"SET {setting}")
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()

    def query(self, sql: str) -> Result:
        """Run ``sql``. Raises ``UsageError`` with DuckDB's first line when it cannot be run."""
        try:
            answer = self._connection.execute(sql)
            if answer is None:
                raise UsageError("query: there is no statement in it")
            columns = _different([column[0] for column in answer.description or []])
            return Result(columns, answer.fetchall() if columns else [])
        except self._duckdb.Error as error:
            raise UsageError(f"query: {_first_line(error)}") from None
        except (ArithmeticError, ValueError) as error:  # a value that Python has no room for, such as a year 20000
            raise UsageError(f"query: {_first_line(error)}") from None

    def parquet(self, sql: str, path: str | Path) -> int:
        """Write the answer to a Parquet file and return its rows. Raises :class:`MissingExtraError` without pyarrow."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("writing Parquet", "parquet") from None
        result = self.query(sql)
        columns = {name: [row[i] for row in result.rows] for i, name in enumerate(result.columns)}
        written = pyarrow.table(columns)
        pyarrow.parquet.write_table(written, path)
        return len(result.rows)

    def _load(self, directories: Sequence[Path]) -> None:
        names = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
        self._connection.execute(f"CREATE TABLE events (row_id BIGINT, run_id VARCHAR, {names})")
        described = ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items())
        for directory in directories:
            statement = f"""INSERT INTO events BY NAME
                SELECT row_number() OVER () AS row_id, ? AS run_id, * FROM read_json(?,
                  format = 'newline_delimited', columns = {{{described}}}, maximum_object_size = 67108864)"""
            with _committed(directory, self.damage) as path:
                try:
                    self._connection.execute(statement, [directory.name, str(path)])
                except self._duckdb.Error as error:
                    raise DataError(f"{directory}: {_first_line(error)}") from None
        self._connection.execute("UPDATE events SET severity = coalesce(severity, 'info'), data = coalesce(data, '{}')")


@contextlib.contextmanager
def _committed(directory: Path, damage: list[Damage]) -> Iterator[Path]:
    """A temporary file with just the committed lines that stand."""
    reading = read_journal(directory)
    handle, name = tempfile.mkstemp(prefix="esper-query-", suffix=".jsonl")
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                for batch in reading.batches():
                    batch.events()  # DuckDB takes an object for an event whatever is in it
                    body = batch.body
                    file.write(
                        body if batch.kept == batch.count else b"".join(body.splitlines(keepends=True)[: batch.kept])
                    )
            except DataError as problem:
                damage.append(damage_of(problem))
        damage.extend(report_damage(reading.report))
        yield Path(name)
    finally:
        os.unlink(name)


_MOMENTS: Final = frozenset({"timestamp", "started", "ended"})
"""Columns of the views that hold seconds since 1970: a table shows them as dates, CSV and JSON as they are."""


def _first_line(error: Exception) -> str:
    return told((str(error).strip() or type(error).__name__).splitlines()[0])


def _different(names: Sequence[str]) -> list[str]:
    """Names of columns, the second ``a`` as ``a_1``: no form of an answer has two of one name."""
    found: dict[str, None] = {}
    for name in names:
        number, other = 0, name
        while other in found or (number and other in names):
            number += 1
            other = f"{name}_{number}"
        found[other] = None
    return list(found)


def _cell(value: Any, column: str) -> str:
    if value is None:
        return ABSENT
    if column in _MOMENTS and isinstance(value, float):
        return moment(value)
    return figure(value) if isinstance(value, bool | float) else " ".join(str(value).split())


def _spelled(value: Any) -> Any:
    return wire_safe(value) if isinstance(value, float) else value
