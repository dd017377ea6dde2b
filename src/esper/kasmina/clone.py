"""Copies of a block of the host behind it. An exported model carries this: it needs nothing but torch."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

from esper.kasmina.structure import get, put

CACHES = frozenset(
    {
        "past_key_values",
        "past_key_value",
        "layer_past",
        "past",
        "kv_cache",
        "cache",
        "cache_params",
        "inference_params",
        "incremental_state",
    }
)
"""What blocks call the argument in which they are handed keys and values, or a state, of earlier positions."""


class Clone(nn.Module):
    """``block(h, ...)``: a copy of the block in front, called as that was, with what it gave in place of what it took.

    So it sees the masks, positions and whatever else the host hands its block.
    """

    takes_call = True

    def __init__(
        self,
        block: nn.Module,
        entry: tuple[Any, ...] = (0, 0),
        position: tuple[Any, ...] = (),
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """``entry`` leads to the stream in ``(args, kwargs)``, ``position`` to it in the output of the block; ``axes``
        permutes it to ``h``.
        """
        super().__init__()
        self.block = block
        self.entry = entry
        self.position = position
        self.axes = axes

    def forward(self, h: Tensor, args: Any, kwargs: Any) -> Tensor:
        """``h`` as a slot has it, and what the block in front was called with; returns the shape of ``h``.

        Raises ``TypeError`` where the block is handed what only one block can have, such as a place in a cache.
        """
        reason = against_call(self.block, args, kwargs)
        if reason is not None:
            raise TypeError(f"a copied {type(self.block).__name__} {reason}")
        if self.axes is not None:
            h = h.permute([self.axes.index(axis) for axis in range(len(self.axes))])
        args, kwargs = put((args, kwargs), self.entry, h)
        out: Tensor = get(self.block(*args, **kwargs), self.position)
        return out if self.axes is None else out.permute(self.axes)


def against_call(block: nn.Module, args: Any, kwargs: Any) -> str | None:
    """Why a call of a block cannot be made of its copy too; ``None`` where it can."""
    names = [name for name in inspect.signature(block.forward).parameters if name != "self"]
    for name, value in (*zip(names, args, strict=False), *kwargs.items()):
        given = value is not None and not isinstance(value, bool)
        if given and (name in CACHES or type(value).__name__.endswith("Cache")):
            return f"has no place of its own in {name!r}, a cache of earlier positions; legal: use_cache=False"
        if not _is_plain(value):
            return f"is handed {name!r}, a {type(value).__name__}; legal: tensors, numbers, text, and lists of them"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def copied(
    block: nn.Module, entry: tuple[Any, ...], position: tuple[Any, ...], axes: tuple[int, ...] | None = None
) -> Clone:
    """A :class:`Clone` of ``block``, all of which learns."""
    return Clone(copy.deepcopy(block).requires_grad_(True), entry, position, axes)
