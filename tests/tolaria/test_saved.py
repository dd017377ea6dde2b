"""Saved envs are taken apart and put together without a look at what is in them."""

from __future__ import annotations

import pytest
import torch

from esper.leyline import EnvSpec
from esper.tolaria.nested import join, plain_state
from esper.tolaria.saved import SavedEnvs


def saved(epoch: int, *numbers: int) -> SavedEnvs:
    envs = tuple(join({"own": {"tensors": {"w": torch.full((2,), n)}, "plain": n}}) for n in numbers)
    return SavedEnvs(epoch, tuple(EnvSpec(n, 0, n, 9) for n in numbers), envs)


def test_the_stored_layout_is_that_of_version_0_1_0() -> None:
    state = saved(3, 4, 5).state()
    assert set(state["plain"]) == {"clock", "row0", "row1"}
    assert state["plain"]["clock"]["epoch"] == 3 and state["plain"]["clock"]["rows"][1]["env_id"] == 5
    assert set(state["tensors"]) == {"row0/own/w", "row1/own/w"}


def test_taking_apart_and_joining_is_the_identity() -> None:
    whole = saved(3, 4, 5, 6)
    again = SavedEnvs.join([whole.take([0]), whole.take(range(1, 3))])
    assert SavedEnvs.of(again.state()).specs == whole.specs
    assert {k: v.tolist() for k, v in again.state()["tensors"].items()} == {
        k: v.tolist() for k, v in whole.state()["tensors"].items()
    }
    swapped = whole.take([2, 0])
    assert [spec.env_id for spec in swapped.specs] == [6, 4] and swapped.envs[0] is whole.envs[2]


def test_joined_rows_may_be_given_other_names() -> None:
    named = SavedEnvs.join([saved(3, 4), saved(3, 5)], [EnvSpec(i, 0, 1, 9) for i in range(2)])
    assert [spec.env_id for spec in named.specs] == [0, 1]


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="one epoch is needed"):
        SavedEnvs.join([saved(3, 4), saved(2, 5)])
    with pytest.raises(ValueError, match="1 specs for 2 rows"):
        SavedEnvs.join([saved(3, 4, 5)], [EnvSpec(0, 0, 1, 9)])
    with pytest.raises(KeyError):
        SavedEnvs.of(plain_state({"row0": 1}))
