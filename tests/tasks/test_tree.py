"""Batches that are trees: how many examples they hold, parts of them, and where they are."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BatchEncoding

from esper.kasmina.structure import tensors
from esper.leyline import DataError, UsageError
from esper.tasks.tree import count, moved, part, require_finite, size, tensored


@dataclass
class Pair:
    x: Tensor
    mask: Tensor


def rows(n: int, *shape: int) -> Tensor:
    return torch.arange(float(n * max(1, int(np.prod(shape))))).reshape(n, *shape)


@st.composite
def trees(draw: st.DrawFn, n: int) -> Any:
    """Stacked tensors of ``n`` examples in containers of every kind."""
    leaf = st.lists(st.integers(1, 3), max_size=2).map(lambda shape: rows(n, *shape))
    beside = st.sampled_from([None, "name", 3, 0.5])
    pairs = st.tuples(leaf, leaf).map(lambda two: Pair(*two))

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        named = st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        return st.one_of(
            st.tuples(inner), st.tuples(inner, inner), st.tuples(inner, beside), named, named.map(UserDict),
            named.map(BatchEncoding), st.lists(inner, min_size=1, max_size=2).filter(plain),
        )  # fmt: skip

    return draw(st.recursive(leaf | pairs, deeper, max_leaves=4))


def plain(items: list[Any]) -> bool:
    """A list of mappings has one entry an example."""
    return not any(isinstance(each, dict | UserDict) for each in items)


@given(st.data(), st.integers(3, 6))
@settings(max_examples=40, deadline=None)
def test_stacked_trees_are_counted_and_divided(data: st.DataObject, n: int) -> None:
    inputs, targets = data.draw(trees(n)), data.draw(trees(n))
    assert count(inputs, targets) == size(inputs, targets) == n
    index = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    few = part(inputs, index, n)
    assert type(few) is type(inputs)
    whole = dict(tensors(inputs))
    assert [path for path, _ in tensors(few)] == list(whole)
    assert all(torch.equal(tensor, whole[path][index]) for path, tensor in tensors(few))
    assert count(few, part(targets, index, n)) in (len(index), None)


@given(st.integers(1, 5), st.integers(1, 5))
def test_lists_of_one_entry_an_example(n: int, other: int) -> None:
    images = [torch.zeros(3, 4 + i, 5) for i in range(n)]
    boxes = [{"boxes": torch.zeros(1 + i % 2, 4), "labels": torch.zeros(1 + i % 2)} for i in range(n)]
    assert count(images, boxes) == n
    index = torch.tensor([n - 1])
    assert part(images, index, n) == [images[-1]] or n == 3
    assert part(boxes, index, n) == [boxes[-1]]
    expected = n if n == other else None
    assert count(torch.zeros(n, 2), [torch.zeros(7 + i) for i in range(other)]) == expected


def graph(nodes: int) -> tuple[dict[str, Tensor], Tensor]:
    return {"x": rows(nodes, 3), "edges": torch.zeros(2, 3 * nodes, dtype=torch.int64)}, rows(nodes)


def test_what_does_not_agree_cannot_be_counted() -> None:
    for n in (1, 3, 9):
        assert count(*graph(n)) is None
        assert size(*graph(n)) == 1
    assert count({"x": rows(3), "y": object()}, rows(3)) is None, "what is in it is not known"
    assert count(rows(3), rows(4)) is None
    assert count(rows(3), torch.zeros(())) == count(torch.zeros(()), rows(3)) == 3
    assert count(torch.zeros(()), None) is None


def test_a_part_of_what_is_not_one_row_an_example_is_refused() -> None:
    for tree in ({"logits": rows(4), "loss": torch.zeros(())}, (rows(4), rows(3))):
        with pytest.raises(UsageError, match="does not hold one row for each of 4 examples"):
            part(tree, torch.tensor([0]), 4)


class Graph:
    def __init__(self, where: Any = "here") -> None:
        self.where = where

    def to(self, device: Any) -> Graph:
        return Graph(device)


def test_a_batch_moves_with_everything_in_it() -> None:
    lengths = torch.tensor([2, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(rows(2, 2, 1), lengths, batch_first=True)
    batch = {
        "g": Graph(),
        "x": [rows(2)],
        "e": BatchEncoding({"ids": rows(2)}),
        "p": packed,
        "d": Pair(rows(1), rows(1)),
    }
    there = moved(batch, "meta")
    assert there["g"].where == "meta"
    assert {tensor.device.type for _, tensor in tensors((there["x"], there["e"], there["d"]))} == {"meta"}
    assert there["p"].data.device.type == "meta" and there["p"].batch_sizes.device.type == "cpu"
    assert {tensor.device.type for _, tensor in tensors(batch)} == {"cpu"}


def test_arrays_and_numbers_become_tensors() -> None:
    found = tensored({"x": np.ones((2, 3)), "names": ["a", "b"]})
    assert isinstance(found["x"], Tensor) and found["names"] == ["a", "b"]
    assert torch.equal(tensored([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]))
    assert tensored(["a"]) == ["a"]


def test_masks_are_no_fault_and_nan_is_named() -> None:
    mask = torch.zeros(2, 3).masked_fill(torch.ones(2, 3).bool().triu(1), -torch.inf)
    require_finite("x", {"mask": mask, "ids": torch.arange(3), "none": torch.zeros(0, 4)})
    with pytest.raises(DataError, match=r"x\['a'\]\[1\]: 1 of 2 examples hold NaN or infinity, the first is 1"):
        require_finite("x", {"a": (torch.ones(2), torch.tensor([[0.0], [torch.nan]]))})
    with pytest.raises(DataError, match="2 of 2 examples"):
        require_finite("x", mask + torch.inf)
