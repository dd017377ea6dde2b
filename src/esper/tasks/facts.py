"""What is known of the targets of a split after they were read once, batch by batch; the targets are not kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

MOST_VALUES: Final = 1 << 20
"""Most numbers that are kept for a median, and most classes that are counted; what comes later has no part in it."""


@dataclass(slots=True)
class TargetFacts:
    """Of targets that are one tensor a batch, but for those that are ``ignored``."""

    ignored: int
    low: float = float("inf")
    high: float = float("-inf")
    whole: bool = True
    """Whether all are whole numbers."""
    negative: bool = False
    """Whether any is below 0, ignored ones too."""
    share_axes: set[int] | None = None
    """Axes along which every target sums to 1."""
    numbers: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """How often each whole number occurs, ``[highest + 1]``; empty where one is negative or beyond counting."""
    shape: tuple[int, ...] | None = None
    """Of an example; ``None`` where there was none yet."""
    uniform: bool = True
    """Whether every example has that shape."""
    _rows: int = 0
    _sums: Tensor | None = None
    _known: Tensor | None = None
    _everything: Tensor | None = None
    _kept: list[Tensor] = field(default_factory=list)
    _class_sums: dict[int, Tensor] = field(default_factory=dict)

    def add(self, targets: Any) -> None:
        """Take in the targets of one batch; what is no tensor tells nothing."""
        if not isinstance(targets, Tensor) or targets.ndim == 0 or targets.is_complex() or targets.numel() == 0:
            return
        known = targets != self.ignored if targets.dtype is not torch.bool else torch.ones_like(targets)
        kept = targets[known]
        self.negative = self.negative or bool((targets < 0).any())
        if kept.numel():
            self.low, self.high = min(self.low, float(kept.min())), max(self.high, float(kept.max()))
            self.whole = self.whole and (not kept.is_floating_point() or bool((kept == kept.round()).all()))
        self._count(kept)
        self._note_shape(targets)
        self._note_shares(targets)
        if self.uniform:
            self._note_positions(targets, known)

    def _count(self, kept: Tensor) -> None:
        if not self.whole or self.low < 0 or self.high >= MOST_VALUES:
            self.numbers = self.numbers[:0]
            return
        more = torch.bincount(kept.long().flatten(), minlength=len(self.numbers)).cpu()
        more[: len(self.numbers)] += self.numbers
        self.numbers = more

    def _note_shape(self, targets: Tensor) -> None:
        shape = tuple(targets.shape[1:])
        self.uniform = self.uniform and self.shape in (None, shape)
        self.shape = shape if self.shape is None else self.shape

    def _note_shares(self, targets: Tensor) -> None:
        axes = {
            axis
            for axis in range(1, targets.ndim)
            if targets.shape[axis] > 1 and bool(((targets.double().sum(axis) - 1.0).abs() < 1e-3).all())
        }
        self.share_axes = axes if self.share_axes is None else self.share_axes & axes
        for axis in self.share_axes:
            summed = targets.double().movedim(axis, -1).reshape(-1, targets.shape[axis]).sum(dim=0).cpu()
            before = self._class_sums.get(axis)
            self._class_sums[axis] = summed if before is None else before + summed

    def _note_positions(self, targets: Tensor, known: Tensor) -> None:
        values = targets.double()
        sums = values.masked_fill(~known, 0.0).sum(dim=0).cpu()
        counted, everything = known.double().sum(dim=0).cpu(), values.sum(dim=0).cpu()
        self._sums = sums if self._sums is None else self._sums + sums
        self._known = counted if self._known is None else self._known + counted
        self._everything = everything if self._everything is None else self._everything + everything
        self._rows += len(targets)
        if targets.is_floating_point() and sum(each.numel() for each in self._kept) < MOST_VALUES:
            self._kept.append(targets.detach().double().cpu())

    def class_shares(self, classes: int) -> Tensor | None:
        """Share of each class, ``[classes]``; ``None`` where targets are no class numbers."""
        found = self.numbers[:classes].double()
        if len(self.numbers) == 0 or found.sum() == 0:
            return None
        return torch.nn.functional.pad(found, (0, classes - len(found))) / found.sum()

    def mean_shares(self, axis: int) -> Tensor:
        """Mean share of each class along ``axis``, ``[classes]``."""
        summed = self._class_sums[axis]
        return summed / summed.sum()

    def often(self) -> Tensor | None:
        """Mean of each position, without what is ignored; ``None`` where examples differ in shape."""
        return self._sums / self._known if self.uniform and self._sums is not None else None  # type: ignore[operator]

    def middles(self) -> list[Tensor]:
        """Median and mean of each position; none where examples differ in shape."""
        if not self.uniform or self._everything is None or not self._kept:
            return []
        return [torch.cat(self._kept).median(dim=0).values, self._everything / self._rows]
