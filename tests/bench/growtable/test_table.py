"""The file: what goes in comes out, and what is damaged or of another version is refused with a remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_tables import A, made_up_host

from esper.bench.growtable import table as module
from esper.bench.growtable.table import STORED, Table, load_table, save_table
from esper.bench.growtable.worlds import HELD_OUT, KNOWN, TRAINING, WORLDS
from esper.leyline import DataError, Op, UsageError


def small() -> Table:
    return Table([made_up_host(0), made_up_host(1)], {"plan": "by hand"})


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path, table = tmp_path / "t", small()
    size = save_table(table, path)
    back = load_table(path)
    assert path.stat().st_size == size and back.about == table.about and back.worlds == ("digits",)
    for host, other in zip(table.of("digits"), back.of("digits"), strict=True):
        assert (host.number, host.facts) == (other.number, other.facts) and list(other.records) == sorted(host.records)
        for choices, record in host.records.items():
            found = other.records[choices]
            assert (found.ending, found.start_metric) == (record.ending, record.start_metric)
            for name, column in record.steps.items():
                assert np.array_equal(column, found.steps[name], equal_nan=column.dtype.kind == "f"), name
                assert column.dtype == found.steps[name].dtype


def test_the_same_table_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_table(small(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_table(small(), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match="esper growtable build"):
            load_table(path)
        path.write_bytes(whole[:place])
        with pytest.raises(DataError, match="esper growtable build"):
            load_table(path)
    with pytest.raises(DataError, match="No such file.*esper growtable build"):
        load_table(tmp_path / "none")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    monkeypatch.setattr(module, "VERSION", 1)
    save_table(small(), path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="of version 1, this Esper reads version 2; .*esper growtable build"):
        load_table(path)


def test_a_table_of_a_world_that_is_defined_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    save_table(small(), path)
    monkeypatch.setitem(KNOWN, "digits", replace(WORLDS["digits"], lr=0.5))
    with pytest.raises(DataError, match="defines world digits otherwise; .*esper growtable build"):
        load_table(path)


def test_a_world_that_it_does_not_hold_is_named() -> None:
    with pytest.raises(UsageError, match="unknown world of the table 'mnist1d'; legal: digits"):
        small().of("mnist1d")


def test_hosts_that_lack_a_sequence_are_not_whole() -> None:
    few = made_up_host(2, sequences=((), (A,)))
    table = Table([made_up_host(0), few, made_up_host(1)], {"plan": "by hand"})
    assert [host.number for host in table.whole.of("digits")] == [0, 1] and table.whole.about == table.about
    assert len(table.of("digits")) == 3
    assert Table([few], {}).whole.of("digits") == [few], "of the sequences that there are it has all"


def test_the_stored_table_holds_whole_hosts_and_can_be_scored_on() -> None:
    table = load_table()
    assert STORED.stat().st_size < 4_000_000 and any(name in TRAINING for name in table.worlds)
    assert table.whole.worlds == table.worlds
    assert sum(len(table.whole.of(name)) > 1 for name in HELD_OUT if name in table.worlds) >= 2
    for name in table.worlds:
        whole, alone = table.whole.of(name), {c for c in table.of(name)[0].records if len(c) < 2}
        assert () in alone and len(whole) >= 4, name
        for host in table.of(name):
            assert host in whole or set(host.records) == alone, "all of the plan, or every single choice"
            assert {action.op for action in host.root.held} == {Op.WAIT, Op.GERMINATE}
