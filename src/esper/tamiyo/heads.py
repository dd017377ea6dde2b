"""The heads of a factored action: their sizes, what each is conditioned on, and which of them an op consumes.

Shapes: B rows; head k has a *table* ``[B, *context, n_k]``, where ``context`` are the sizes of the leading heads that
the head is conditioned on (an entry may be 1 where it does not depend on that head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline import HEADS, RELEVANT_HEADS, ActionSpace, DataError, Op, UsageError


@dataclass(frozen=True, slots=True)
class Heads:
    """Head k makes one of ``sizes[k]`` choices, given those of the ``context[k]`` leading heads.

    ``consumed[op][k]`` says whether choice ``op`` of head 0 makes use of head k. Raises ``UsageError`` where the fields
    do not fit together.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    context: tuple[int, ...]
    consumed: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.sizes) == len(self.context) or not self.names:
            raise UsageError(f"heads {self.names}: give one size and one context for each of at least one head")
        if any(size < 1 for size in self.sizes):
            raise UsageError(f"heads {self.names} have sizes {self.sizes}; each needs at least one choice")
        if any(depth > k for k, depth in enumerate(self.context)):
            raise UsageError(f"heads {self.names}: a head can be conditioned only on earlier heads, not {self.context}")

    def __len__(self) -> int:
        return len(self.names)

    def table_shape(self, head: int) -> tuple[int, ...]:
        """Full shape of a head's table, without the row axis."""
        return (*self.sizes[: self.context[head]], self.sizes[head])

    def all_legal(self, rows: int) -> tuple[Tensor, ...]:
        """Masks that forbid nothing: for each head ``[rows, *context, n]`` bool, every context axis of length 1."""
        return tuple(
            torch.ones(rows, *(1,) * depth, size, dtype=torch.bool)
            for depth, size in zip(self.context, self.sizes, strict=True)
        )

    def relevance(self) -> Tensor:
        """``consumed`` as a bool tensor ``[choices of head 0, heads]``."""
        return torch.tensor(self.consumed, dtype=torch.bool)

    def check_masks(self, masks: Sequence[Tensor]) -> None:
        """Raise ``DataError`` unless there is one table ``[B, *context, n]`` for each head and every choice that they
        let a policy reach can be completed legally.

        A row of a table may be empty as long as nothing legal leads to it.
        """
        if len(masks) != len(self):
            raise DataError(f"{len(masks)} masks for {len(self)} heads ({', '.join(self.names)})")
        for k, mask in enumerate(masks):
            full = self.table_shape(k)
            fits = mask.ndim == len(full) + 1 and all(
                got in (1, want) for got, want in zip(mask.shape[1:-1], full[:-1], strict=True)
            )
            if mask.dtype != torch.bool or not fits or mask.shape[-1] != full[-1]:
                raise DataError(
                    f"mask of head {self.names[k]!r} is {mask.dtype} {tuple(mask.shape)}; "
                    f"bool [rows, {', '.join(map(str, full))}] is needed"
                )
        relevance = self.relevance().to(masks[0].device)
        for k, mask in enumerate(masks):
            dead_end = self._reached(k, masks, relevance) & ~mask.any(-1)
            if dead_end.any():
                row, *path = dead_end.nonzero()[0].tolist()
                raise DataError(f"environment {row}: head {self.names[k]!r} has no legal choice{self._where(path)}")

    def _reached(self, head: int, masks: Sequence[Tensor], relevance: Tensor) -> Tensor:
        """Which rows of a head's table some legal choice of the earlier heads leads to, ``[B, *context]``."""
        rows = len(masks[0])
        if head == 0:
            return torch.ones(rows, dtype=torch.bool, device=masks[0].device)
        consumer = masks[0] & relevance[:, head]
        if self.context[head] == 0:
            return consumer.any(-1)
        reached = consumer
        for earlier in range(1, self.context[head]):
            reached = reached.unsqueeze(-1) & self._expanded(earlier, masks[earlier])
        return reached

    def _expanded(self, head: int, mask: Tensor) -> Tensor:
        """A mask over every leading head, also those that its own head does not depend on."""
        missing = head - self.context[head]
        index = (slice(None),) * (1 + self.context[head]) + (None,) * missing
        return mask[index]

    def _where(self, path: Sequence[int]) -> str:
        """The choices that lead to a table row, in words."""
        if not path:
            return ""
        first = Op(path[0]).name if self.names == HEADS else str(path[0])
        chosen = [f"{self.names[0]}={first}", *(f"{n}={i}" for n, i in zip(self.names[1:], path[1:], strict=False))]
        return f" after {', '.join(chosen)}"


def independent_heads(sizes: Sequence[int], names: Sequence[str] | None = None) -> Heads:
    """Heads for a ``Discrete`` or ``MultiDiscrete`` space: unconditioned, always consumed, ``sizes[k]`` choices
    each."""
    labels = tuple(names) if names is not None else tuple(f"head{k}" for k in range(len(sizes)))
    return Heads(labels, tuple(sizes), (0,) * len(sizes), ((True,) * len(sizes),) * sizes[0])


def growth_heads(space: ActionSpace) -> Heads:
    """Heads of a growing host: slots are chosen for an op, everything after that for an op in a slot."""
    consumed = tuple(tuple(name in RELEVANT_HEADS[op] for name in HEADS) for op in Op)
    return Heads(HEADS, space.sizes, (0, 1, 2, 2, 2, 2), consumed)
