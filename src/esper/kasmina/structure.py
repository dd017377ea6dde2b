"""Tensors inside what a module takes or returns: tuples, named tuples, lists, dicts, dataclasses, model outputs.

Objects of other kinds (numbers, strings, caches) are passed through untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]
"""Index, key or field name at every level; empty where the value itself is the tensor."""


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in ``value`` with its path, depth first."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, item in _items(value):
        yield from tensors(item, (*path, key))


def get(value: Any, path: Path) -> Any:
    """What stands at ``path``."""
    for key in path:
        value = value[key] if isinstance(value, dict | tuple | list) else getattr(value, key)
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    """A copy of ``value``, of the same type, with ``new`` at ``path``."""
    if not path:
        return new
    key, *rest = path
    return _rebuilt(value, [(key, put(get(value, (key,)), tuple(rest), new))])


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of ``value``, of the same type and with containers of its own, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    items = [(key, mapped(item, change)) for key, item in _items(value)]
    return _rebuilt(value, items) if items else value


def version(tensor: Tensor) -> int:
    """Counts in-place writes; always 0 for inference tensors, which are not tracked."""
    return 0 if tensor.is_inference() else tensor._version


def same(one: Any, other: Any) -> bool:
    """Whether two outputs hold the same tensors, bit for bit, in the same places."""
    left, right = dict(tensors(one)), dict(tensors(other))
    return list(left) == list(right) and all(same_bits(left[path], right[path]) for path in left)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, type and every bit (-0.0 is not 0.0)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (a, b)))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, tuple | list):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    return ()


def _rebuilt(value: Any, items: list[tuple[Any, Any]]) -> Any:
    if isinstance(value, tuple):
        entries = list(value)
        for index, item in items:
            entries[index] = item
        return value._make(entries) if hasattr(value, "_make") else type(value)(entries)
    new = copy.copy(value)
    for key, item in items:
        if isinstance(value, dict | list):
            new[key] = item
        else:
            object.__setattr__(new, key, item)
    return new
