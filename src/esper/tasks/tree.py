"""A batch is a pair ``(inputs, targets)``, each a tree: a tensor, or tuples, lists and mappings of them.

How many examples a batch holds is found where its tensors agree on the length of their first axis, or where inputs and
targets are lists with one entry an example. Where they do not agree, as in a batch of graphs, the examples cannot be
counted, and the batch is what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from esper.kasmina.structure import is_mask, mapped, tensors
from esper.leyline import DataError, UsageError

_SAYS_NOTHING: Final = (str, bytes, int, float, bool, complex, type(None))
"""Kinds of things that a batch may hold beside its examples."""


def moved(tree: Any, device: torch.device | str) -> Any:
    """The same batch on ``device``. What has a ``to`` of its own, such as a graph, moves itself."""

    def here(part: Any) -> Any:
        return part.to(device) if _moves(part) else mapped(part, lambda tensor: tensor.to(device))

    return pytree.tree_map(here, tree, is_leaf=_moves)


def _moves(part: Any) -> bool:
    """Mappings that can move do so in place, and the batch is the loader's."""
    return callable(getattr(part, "to", None)) and not isinstance(part, Mapping)


def tensored(tree: Any) -> Any:
    """The same batch with tensors for arrays of numpy, and for lists of numbers where there is nothing else."""
    found = pytree.tree_map(lambda leaf: torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
    leaves = pytree.tree_leaves(found)
    return torch.as_tensor(found) if leaves and all(isinstance(leaf, int | float) for leaf in leaves) else found


def require_finite(what: str, tree: Any) -> None:
    """Raise ``DataError`` naming ``what``, the tensor and the first bad example where one holds NaN or infinity.

    Tensors of 0 and minus infinity alone are masks that are added to scores, and pass.
    """
    for path, values in tensors(tree):
        dense = values if values.layout is torch.strided else values.coalesce().values() if values.is_sparse else None
        if dense is None or not dense.is_floating_point() or dense.numel() == 0:
            continue
        ends = torch.stack(torch.aminmax(dense))
        if bool(torch.isfinite(ends).all()) or is_mask(dense):
            continue
        rows = dense.reshape(len(dense) if dense.ndim else 1, -1)
        bad = (~torch.isfinite(rows)).any(dim=1)
        where = "".join(f"[{key!r}]" for key in path)
        raise DataError(
            f"{what}{where}: {int(bad.sum()):,} of {len(bad):,} examples hold NaN or infinity, "
            f"the first is {int(bad.nonzero()[0])}"
        )


def count(inputs: Any, targets: Any) -> int | None:
    """Examples in a batch; ``None`` where inputs and targets do not tell one number."""
    given, wanted = _lengths(inputs), _lengths(targets)
    if given is None or wanted is None:
        found = given or wanted or ()
    else:
        found = [n for n in given if n in wanted]
    return found[0] if found else None


def size(inputs: Any, targets: Any) -> int:
    """Examples in a batch; 1 where they cannot be counted: the batch itself is then what is counted."""
    found = count(inputs, targets)
    return 1 if found is None else found


def _lengths(tree: Any) -> Sequence[int] | None:
    """What may be the number of examples in ``tree``, likeliest first; ``None`` where it does not say."""
    if isinstance(tree, Tensor):
        return (len(tree),) if tree.ndim else None
    if isinstance(tree, Mapping):
        return _agreed(tree.values())
    if isinstance(tree, tuple):
        return _agreed(tree)
    if isinstance(tree, list):
        whole = () if any(isinstance(item, Mapping) for item in tree) else _agreed(tree) or ()
        return tuple(dict.fromkeys((*whole, len(tree))))
    if is_dataclass(tree):
        return _agreed(getattr(tree, field.name) for field in fields(tree))
    return None if isinstance(tree, _SAYS_NOTHING) else ()


def _agreed(parts: Any) -> Sequence[int] | None:
    """The lengths that all ``parts`` may have which have any."""
    told = [lengths for part in parts if (lengths := _lengths(part)) is not None]
    return [n for n in told[0] if all(n in lengths for lengths in told[1:])] if told else None


def part(tree: Any, index: Tensor, n: int) -> Any:
    """The examples at ``index`` (int64 ``[M]``) of a tree that holds ``n``.

    Raises ``UsageError`` where a tensor does not hold one row an example.
    """

    def of(leaf: Any) -> Any:
        if isinstance(leaf, list):
            return [leaf[i] for i in index.tolist()]
        return mapped(leaf, of_tensor)

    def of_tensor(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != n:
            raise UsageError(f"a tensor of shape {tuple(tensor.shape)} does not hold one row for each of {n} examples")
        return tensor[index.to(tensor.device)]

    return pytree.tree_map(of, tree, is_leaf=lambda each: isinstance(each, list) and _by_entry(each, n))


def _by_entry(entries: list[Any], n: int) -> bool:
    """Whether a list has one entry for each of ``n`` examples, rather than entries of ``n`` rows each."""
    return len(entries) == n and (
        any(isinstance(each, Mapping) for each in entries) or n not in (_agreed(entries) or ())
    )
