"""Tensors inside what a module takes or returns: tuples, named tuples, lists, mappings, dataclasses, model outputs.

``torch.utils._pytree`` walks through the containers that it knows; those that it does not, such as ``BatchEncoding``,
dataclasses and subclasses of ``dict``, are opened here. Objects of other kinds (numbers, strings, caches) are passed
through untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Path = tuple[Any, ...]
"""Index, key or field name at every level; empty where the value itself is the tensor."""


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in ``value`` with its path, depth first."""
    if isinstance(value, Tensor):  # what most modules give; a walk takes longer than a small one computes
        yield path, value
        return
    for keys, leaf in pytree.tree_flatten_with_path(value, is_leaf=_own_tuple)[0]:
        here = (*path, *map(_name, keys))
        if isinstance(leaf, Tensor):
            yield here, leaf
        elif (inside := _opened(leaf)) is not None:
            yield from tensors(inside, here)


def get(value: Any, path: Path) -> Any:
    """What stands at ``path``."""
    for key in path:
        value = value[key] if isinstance(value, Mapping | tuple | list) else getattr(value, key)
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    """A copy of ``value``, of the same type, with ``new`` at ``path``."""
    if not path:
        return new
    key, *rest = path
    return _rebuilt(value, {key: put(get(value, (key,)), tuple(rest), new)})


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of ``value``, of the same type and with containers of its own, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    leaves, spec = pytree.tree_flatten(value)
    return pytree.tree_unflatten([_changed(leaf, change) for leaf in leaves], spec)


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


def is_mask(values: Tensor) -> bool:
    """Whether there is nothing but 0 and minus infinity in it: a mask that is added to scores."""
    return bool(((values == 0) | values.isneginf()).all())


def _own_tuple(value: Any) -> bool:
    """Named tuples are gone through by index, as tuples are."""
    return isinstance(value, tuple) and type(value) is not tuple


def _name(key: Any) -> Any:
    """Index, key or field name, as ``pytree`` wraps it."""
    return next(getattr(key, each) for each in ("idx", "key", "name") if hasattr(key, each))


def _changed(leaf: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(leaf, Tensor):
        return change(leaf)
    inside = _opened(leaf)
    return leaf if not inside else _rebuilt(leaf, mapped(inside, change))


def _opened(value: Any) -> dict[Any, Any] | None:
    """What is in a container that ``pytree`` does not know; ``None`` where it is none."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _rebuilt(value: Any, items: Mapping[Any, Any]) -> Any:
    """A copy of a container of any kind, with other ``items`` in it."""
    if isinstance(value, tuple):
        entries = [items.get(index, item) for index, item in enumerate(value)]
        return value._make(entries) if hasattr(value, "_make") else type(value)(entries)
    new = copy.copy(value)
    for key, item in items.items():
        if isinstance(value, Mapping | list):
            new[key] = item
        else:
            object.__setattr__(new, key, item)
    return new


def own_modules(module: nn.Module) -> list[nn.Module]:
    """The module and all in it, whatever ``modules()`` answers."""
    found: dict[nn.Module, None] = {}
    waiting: list[Any] = [module]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in found:
            found[each] = None
            waiting.extend(reversed(each._modules.values()))
    return list(found)
