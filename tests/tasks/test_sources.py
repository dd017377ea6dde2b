"""Reading installed packages' files, and splits that keep the classes' proportions."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import DataError, MissingExtraError
from esper.tasks.sources import cut, normalised, package_file, read_table, stratified_order


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[colour\]'"):
        package_file("no_such_package_here", "x.csv", extra="colour")
    with pytest.raises(DataError, match="package no_such_package_here is not installed"):
        package_file("no_such_package_here", "x.csv")
    with pytest.raises(DataError, match=r"numpy is installed but carries no x\.csv"):
        package_file("numpy", "x.csv")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wt") as lines:
        lines.write("1,2\n3,4\n" * 1000)
    assert read_table(path).shape == (2000, 2)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="table.csv.gz: not a readable table"):
        read_table(path)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80), seed=st.integers(0, 100))
def test_every_stretch_of_a_stratified_order_has_the_classes_in_proportion(labels: list[int], seed: int) -> None:
    values = np.array(labels)
    order = stratified_order(values, seed)
    assert sorted(order) == list(range(len(labels)))
    for size in range(1, len(labels) + 1):
        for label in set(labels):
            expected = size * labels.count(label) / len(labels)
            assert abs((values[order[:size]] == label).sum() - expected) <= len(set(labels))


def test_cutting_more_than_there_is_is_refused() -> None:
    assert [len(part) for part in cut(np.arange(10), (5, 2))] == [5, 2]
    with pytest.raises(DataError, match=r"splits of 5 \+ 6 examples asked of 10"):
        cut(np.arange(10), (5, 6))


def test_normalising_uses_the_training_part_alone() -> None:
    train, other = torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([9.0], dtype=torch.float64)
    assert normalised(train, train).tolist() == [-1.0, 1.0]
    assert normalised(other, train).tolist() == [8.0]
