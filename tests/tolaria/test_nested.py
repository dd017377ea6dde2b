"""States of states: joined and taken apart again."""

from __future__ import annotations

import pytest
import torch

from esper.leyline import DataError
from esper.tolaria.nested import join, plain_state, split


def test_what_is_joined_can_be_taken_apart_at_every_depth() -> None:
    weights = torch.arange(3.0)
    inner = join({"a": {"tensors": {"w/x": weights}, "plain": [1]}, "b": plain_state(None)})
    outer = join({"rows": inner, "clock": plain_state({"epoch": 2})})
    assert list(outer["tensors"]) == ["rows/a/w/x"] and outer["tensors"]["rows/a/w/x"] is weights
    again = split(outer, "rows", "clock")
    assert again["clock"] == plain_state({"epoch": 2})
    assert split(again["rows"])["a"] == {"tensors": {"w/x": weights}, "plain": [1]}


def test_other_parts_than_expected_are_refused() -> None:
    state = join({"a": plain_state(1)})
    with pytest.raises(DataError, match="has the parts a; b are needed"):
        split(state, "b")
    with pytest.raises(DataError, match="belongs to no part"):
        split({"tensors": {"c/x": torch.ones(1)}, "plain": {"a": 1}})
    with pytest.raises(ValueError, match="slash"):
        join({"a/b": plain_state(1)})
