"""Finding and replacing tensors in whatever a module gives."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from esper.kasmina.structure import get, mapped, put, tensors


class Named(NamedTuple):
    state: Tensor
    size: int


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    inner: tuple[Named, ...]


def named() -> Named:
    return Named(torch.ones(2), 3)


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (torch.ones(2), [()]),
        ((torch.ones(2), None, [torch.zeros(1)]), [(0,), (2, 0)]),
        (OrderedDict(a=torch.ones(2), b={"c": (torch.ones(1),)}), [("a",), ("b", "c", 0)]),
        (named(), [(0,)]),
        (Frozen(torch.ones(1), (named(), named())), [("logits",), ("inner", 0, 0), ("inner", 1, 0)]),
        (torch.max(torch.ones(2, 2), 1), [(0,), (1,)]),
        ("text", []),
        ([], []),
    ],
    ids=["tensor", "tuple", "dict", "named", "dataclass", "torch", "text", "empty"],
)
def test_every_tensor_has_a_path_and_can_be_replaced(value: object, paths: list[tuple[object, ...]]) -> None:
    assert [path for path, _ in tensors(value)] == paths
    for path, tensor in tensors(value):
        assert get(value, path) is tensor
        new = put(value, path, torch.full((3,), 7.0))
        assert type(new) is type(value)
        assert get(new, path).tolist() == [7.0] * 3
        assert get(value, path) is tensor
        assert [get(new, other) is get(value, other) for other in paths if other != path] == [True] * (len(paths) - 1)
    doubled = mapped(value, lambda tensor: tensor * 2)
    assert type(doubled) is type(value)
    assert [get(doubled, path).tolist() for path in paths] == [(get(value, path) * 2).tolist() for path in paths]


def test_mapped_containers_are_its_own() -> None:
    inner = {"a": torch.ones(1)}
    copied = mapped([inner, inner], lambda tensor: tensor)
    copied[0].clear()
    assert inner and copied[1]
