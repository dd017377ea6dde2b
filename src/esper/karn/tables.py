"""``esper.report(run)``: what a run's journal holds as data frames, and its evidence, for a notebook.

run = esper.report("runs/20261129-101500-abcd")
run.epochs.to_pandas().plot("epoch", "validation_metric")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from esper.karn.evidence import RunEvidence
from esper.karn.notebook import evidence_html, table_html
from esper.karn.report import as_text, markdown, read_evidence
from esper.karn.runs import resolve_run
from esper.karn.store import VIEWS, Result, SqlStore
from esper.karn.words import figure
from esper.leyline import MissingExtraError, unknown
from esper.leyline.text import visible

SHOWN: Final = 20
"""Rows that a frame shows of itself."""
_INT64: Final = 2**63


def report(run: Any) -> RunReport:
    """What a run says: data frames by name, and the evidence for everything that it grew.

    ``run`` is a run directory, the id of a run in ``runs``, or what :func:`esper.grow` gave. A run that goes on is read
    up to now; ask again for more. Raises ``UsageError`` where there is no such run, ``DataError`` where it cannot be
    read.
    """
    return RunReport(resolve_run(getattr(run, "run_dir", run)))


@dataclass(frozen=True, slots=True)
class Frame:
    """A table of a run: ``to_pandas()``, ``to_arrow()``, or its ``columns`` and ``rows`` as they are.

    What was not measured is ``None``; Arrow keeps it apart from NaN, pandas does not.
    """

    result: Result

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.result.columns)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """One tuple a row."""
        return list(self.result.rows)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; whole numbers stay whole, also beside those that were not measured."""
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("a pandas data frame", "notebook") from None
        columns = {
            name: pandas.Series(values, dtype=_dtype(values), name=name) for name, values in self._by_column().items()
        }
        return pandas.DataFrame(columns, columns=self.columns)

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``; a column with whole numbers beyond 64 bits is of decimals."""
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError("an Arrow table", "notebook") from None
        columns = {}
        for name, values in self._by_column().items():
            if any(type(value) is int and not -_INT64 <= value < _INT64 for value in values):
                exact = [None if value is None else Decimal(value) for value in values]
                columns[name] = pyarrow.array(exact, pyarrow.decimal128(38, 0))
            else:
                columns[name] = pyarrow.array(values)
        return pyarrow.table(columns)

    def _by_column(self) -> dict[str, list[Any]]:
        return {name: [row[at] for row in self.result.rows] for at, name in enumerate(self.result.columns)}

    def __len__(self) -> int:
        return len(self.result.rows)

    def __repr__(self) -> str:
        shown = Result(self.result.columns, self.result.rows[:SHOWN]).text().rsplit("(", 1)[0]
        more = len(self) - SHOWN
        return f"{shown}({len(self)} row{'' if len(self) == 1 else 's'}{f', {more} not shown' if more > 0 else ''})"

    def _repr_html_(self) -> str:
        rows = [[figure(value) for value in row] for row in self.result.rows[:SHOWN]]
        more = len(self) - SHOWN
        return table_html(self.result.columns, rows, f"{more:,} more rows of {len(self):,}" if more > 0 else "")


class RunReport:
    """One run. ``names`` are its tables: each is an attribute and an item, ``run.epochs`` and ``run["epochs"]``."""

    names: tuple[str, ...] = tuple(VIEWS)

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._frames: dict[str, Frame] = {}

    @cached_property
    def evidence(self) -> RunEvidence:
        """Results of every arm, and the life of every seed."""
        return read_evidence(self.run_dir)[0]

    def query(self, sql: str) -> Frame:
        """The answer to a question in SQL over the tables, and over ``events``. Raises ``UsageError`` for bad SQL."""
        return Frame(self._store.query(sql))

    @cached_property
    def _store(self) -> SqlStore:
        return SqlStore([self.run_dir])

    def __getitem__(self, name: str) -> Frame:
        if name not in self.names:
            raise unknown("table", name, self.names)
        if name not in self._frames:
            self._frames[name] = self.query(f"SELECT * FROM {name}")
        return self._frames[name]

    def __getattr__(self, name: str) -> Frame:
        if name in VIEWS:
            return self[name]
        raise AttributeError(f"a run's report has no {name!r}; its tables are {', '.join(self.names)}")

    def __dir__(self) -> Iterator[str]:
        yield from (*super().__dir__(), *self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<run {visible(self.run_dir.name)}: {self.evidence.verdict.headline}. Tables: {', '.join(self.names)}>"

    def __str__(self) -> str:
        return as_text(markdown(self.evidence, (), ()))

    def _repr_html_(self) -> str:
        return evidence_html(self.evidence, self.run_dir)


def _dtype(values: list[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int} and all(value is None or -_INT64 <= value < _INT64 for value in values):
        return "Int64"
    return "float64" if kinds and kinds <= {float} else "object"
