"""What a model's output answers: which class, which labels, or a quantity. Found from shapes, targets and the loss.

| targets | output | right is |
|---|---|---|
| class numbers ``[N, ...]`` or ``[N, 1]`` | ``[N, C, ...]`` or ``[N, ..., C]`` | the largest of C |
| 0 and 1, ``[N]``, ``[N, 1]`` or ``[N, K]`` | the same, but for the 1 | the side of a threshold, label by label |
| shares that sum to 1, ``[N, C, ...]`` | the same | the largest of C, in both |

Ignored targets count for nothing: a sequence in which all are ignored does not move the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from esper.leyline import UsageError
from esper.tasks.facts import TargetFacts
from esper.tasks.losses import counts_of, shape_of, takes_classes, takes_logits, takes_probabilities
from esper.tasks.reduction import Counted

IGNORED: Final = -100
"""Targets that torch's own losses ignore unless told otherwise."""
MOST_CLASSES: Final = 32
"""Most classes of which each is tried as a constant answer."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Percent of targets answered right, for where shapes alone do not tell what the output says."""

    class_axis: int | None = None
    """Axis of the output that holds the classes."""
    threshold: float | None = None
    """From what value on an output says 1: 0 for logits, 0.5 for probabilities."""
    ignore_index: int | None = None
    """Targets that do not count; the loss's own, or -100, where not given."""


Constant = Callable[[Tensor], Tensor]
"""``targets of a batch -> the output`` of a model that always answers the same."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How right answers are counted, and which answers pay no heed to the input."""

    counted: Counted
    """``(output, targets) -> 100 times what is right [N], what counts [N]``."""
    constants: Callable[[], Sequence[Constant]]


def scored_part(output: Any, name: str) -> Tensor:
    """The tensor that a named metric scores: the output itself, or its ``logits``.

    Raises ``UsageError`` where it is not clear which part that is.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise UsageError(
        f"the model's output is a {type(output).__name__} without logits, so metric {name!r} cannot tell which part is "
        "scored; give metric='loss', or Scored(Metric(...), lambda output, targets: one number per example)"
    )


def answers(
    choice: Accuracy, loss: Any, output: Any, targets: Any, every: TargetFacts, *, counting: bool = True
) -> Answers:
    """Find out what ``output [N, ...]`` answers of ``targets [N, ...]``; ``every`` knows the targets of the split.

    Without ``counting`` a quantity is answered too, though not right or wrong. Raises ``UsageError`` with how to say it
    where it cannot be told.
    """
    part = scored_part(output, "accuracy")
    if not isinstance(targets, Tensor):
        raise UsageError(
            f"metric 'accuracy' cannot tell which part of the targets, a {type(targets).__name__}, is answered; "
            "give Scored(Metric(...), lambda output, targets: one number per example)"
        )
    question = _Question(choice, loss, part, isinstance(output, Tensor), targets, every)
    found = question.classes() or question.shares() or question.labels()
    if found is not None:
        return found
    if _one_for_one(part, targets) and targets.is_floating_point():
        if not counting:
            return Answers(_uncounted, partial(_middles, part, every))
        few = ", ".join(f"{value:.3g}" for value in targets.flatten()[:3].tolist())
        raise UsageError(
            f"metric 'accuracy' needs classes, and the targets, {shape_of(targets)}, are quantities such as {few}; "
            "legal for them: metric='mae', metric='loss', or a Scored of your own"
        )
    raise UsageError(
        f"metric 'accuracy' cannot tell how an output {shape_of(part)} answers targets {shape_of(targets)}; "
        "say Accuracy(class_axis=...), or give Scored(Metric(...), lambda output, targets: one number per example)"
    )


def _uncounted(output: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    raise UsageError("a quantity is neither right nor wrong")


def _squeezed(shape: Sequence[int]) -> list[int]:
    """The shape of what is in an example, without axes of length 1."""
    return [size for size in shape[1:] if size != 1]


def _one_for_one(part: Tensor, targets: Tensor) -> bool:
    return len(part) == len(targets) and _squeezed(part.shape) == _squeezed(targets.shape)


@dataclass(frozen=True, slots=True)
class _Question:
    choice: Accuracy
    loss: Any
    part: Tensor
    bare: bool
    """Whether the output is the tensor that is scored."""
    targets: Tensor
    every: TargetFacts

    # --- one class of several --------------------------------------------------------------------------------------

    def classes(self) -> Answers | None:
        """Class numbers."""
        shape = self.targets.shape
        axes = self._axes(shape)
        if not axes and shape[-1] == 1 and self.targets.ndim > 1:
            axes = self._axes(shape[:-1])
        if not axes or not self._are_numbers(max(self.part.shape[axis] for axis in axes)):
            return None
        axis = self._axis(axes)
        return Answers(
            partial(_classes, axis=axis, ignored=self.ignored),
            lambda: _class_constants(self.part, axis, self.every.class_shares(self.part.shape[axis])),
        )

    def _axes(self, shape: Sequence[int]) -> list[int]:
        """Where the output's classes can be, if targets have this shape."""
        sizes = list(self.part.shape)
        return [
            axis for axis in range(1, len(sizes)) if sizes[axis] > 1 and sizes[:axis] + sizes[axis + 1 :] == list(shape)
        ]

    def _are_numbers(self, classes: int) -> bool:
        if not self.targets.is_floating_point():
            return self.targets.dtype is not torch.bool
        return self.every.whole and self.every.low >= 0 and self.every.high < classes

    def _axis(self, axes: list[int]) -> int:
        if self.choice.class_axis is not None:
            given = self.choice.class_axis % self.part.ndim
            if given not in axes:
                raise UsageError(
                    f"Accuracy(class_axis={self.choice.class_axis}): axis {given} of an output {shape_of(self.part)} "
                    f"cannot hold the classes of targets {shape_of(self.targets)}; legal: {axes}"
                )
            return given
        if len(axes) == 1:
            return axes[0]
        if takes_classes(self.loss) and self.bare:
            return 1
        told = [axis for axis in axes if self._shiftless(axis)]
        if len(told) == 1:
            return told[0]
        raise UsageError(
            f"metric 'accuracy' cannot tell which axis of an output {shape_of(self.part)} holds the classes of targets "
            f"{shape_of(self.targets)}; say metric=Accuracy(class_axis=1) or Accuracy(class_axis=-1)"
        )

    def _shiftless(self, axis: int) -> bool:
        """Whether the loss does not change when a number is added to all classes: its gradient sums to 0 over them."""
        if not self.bare:
            return False
        for few in (2, len(self.part)):
            try:
                output = self.part[:few].detach().clone().requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(self.loss(output, self.targets[:few]), output)
            except (RuntimeError, ValueError, IndexError):
                continue
            sums, sizes = gradient.double().sum(axis).abs(), gradient.double().abs().sum(axis)
            if sizes.max() > 0.0:
                return bool(sums.max() <= 1e-3 * sizes.max())
        return False

    # --- shares of classes -----------------------------------------------------------------------------------------

    def shares(self) -> Answers | None:
        """Targets that are probabilities of classes."""
        targets, every = self.targets, self.every
        if self.part.shape != targets.shape or targets.ndim < 2 or takes_logits(self.loss) or every.negative:
            return None
        axes = sorted(every.share_axes or ())
        if not axes:
            return None
        axis = self._axis(axes)
        return Answers(
            partial(_shares, axis=axis),
            lambda: _class_constants(self.part, axis, every.mean_shares(axis), shares=True),
        )

    # --- labels ----------------------------------------------------------------------------------------------------

    def labels(self) -> Answers | None:
        """One or several labels, each 0 or 1."""
        ends = self.every.low >= 0 and self.every.high <= 1
        soft = takes_logits(self.loss) and ends
        if not _one_for_one(self.part, self.targets) or not (soft or (ends and self.every.whole)):
            return None
        threshold = self._threshold()
        return Answers(
            partial(_labels, threshold=threshold, ignored=self.ignored),
            lambda: _label_constants(self.part, self.every, threshold),
        )

    def _threshold(self) -> float:
        if self.choice.threshold is not None:
            return self.choice.threshold
        if takes_logits(self.loss):
            return 0.0
        if takes_probabilities(self.loss):
            return 0.5
        told = [value for value in (0.0, 0.5) if self.bare and self._meets(value)]
        if len(told) == 1:
            return told[0]
        raise UsageError(
            f"metric 'accuracy' cannot tell from what value on an output {shape_of(self.part)} says 1; "
            "say metric=Accuracy(threshold=0.0) for logits, Accuracy(threshold=0.5) for probabilities"
        )

    def _meets(self, value: float) -> bool:
        """Whether the loss of answering ``value`` is the same for both labels."""
        output = torch.full_like(self.part, value)
        try:
            one, other = (
                self.loss(output, make(self.targets)).double() for make in (torch.ones_like, torch.zeros_like)
            )
        except Exception:  # a user's function may raise anything of targets that it has never seen
            return False
        return bool(torch.isclose(one, other, rtol=1e-4, atol=1e-6))

    @property
    def ignored(self) -> int:
        """Targets that do not count."""
        return ignored_by(self.choice, self.loss)


def ignored_by(metric: Any, loss: Any) -> int:
    """Targets that do not count, by a metric and a loss."""
    if isinstance(metric, Accuracy) and metric.ignore_index is not None:
        return metric.ignore_index
    counts = counts_of(loss)
    return IGNORED if counts is None else counts.ignore_index


def _percent(right: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    n = len(right)
    return 100.0 * (right & kept).reshape(n, -1).sum(dim=1), kept.reshape(n, -1).sum(dim=1)


def _classes(output: Any, targets: Tensor, *, axis: int, ignored: int) -> tuple[Tensor, Tensor]:
    said = scored_part(output, "accuracy").argmax(dim=axis)
    targets = targets.reshape(said.shape)
    return _percent(said == targets, targets != ignored)


def _shares(output: Any, targets: Tensor, *, axis: int) -> tuple[Tensor, Tensor]:
    right = scored_part(output, "accuracy").argmax(dim=axis) == targets.argmax(dim=axis)
    return _percent(right, torch.ones_like(right))


def _labels(output: Any, targets: Tensor, *, threshold: float, ignored: int) -> tuple[Tensor, Tensor]:
    said = scored_part(output, "accuracy").reshape(targets.shape) > threshold
    kept = torch.ones_like(targets, dtype=torch.bool) if targets.dtype is torch.bool else targets != ignored
    return _percent(said == (targets > 0.5 if targets.dtype is not torch.bool else targets), kept)


def _class_constants(part: Tensor, axis: int, prior: Tensor | None, *, shares: bool = False) -> list[Constant]:
    """The logarithm of how often each class occurs; and each class alone, where they are few. Targets are class numbers
    or ``shares``."""
    if prior is None:
        return []
    classes = part.shape[axis]
    rows = [prior.clamp(min=1e-12).log()]
    rows += list(torch.eye(classes, dtype=torch.float64)) if classes <= MOST_CLASSES else []

    def answered(row: Tensor, targets: Tensor) -> Tensor:
        sizes = list(targets.shape)
        if not shares:
            sizes = [*sizes[: part.ndim - 1]]
            sizes.insert(axis, classes)
        shape = [1] * part.ndim
        shape[axis] = classes
        return row.to(part).reshape(shape).expand(sizes)

    return [partial(answered, row) for row in rows]


def _label_constants(part: Tensor, every: TargetFacts, threshold: float) -> list[Constant]:
    """How often each label is 1, as a logit where 0 is the threshold."""
    often = every.often()
    if often is None:
        return []
    often = often.clamp(1e-6, 1.0 - 1e-6)
    return _everywhere(part, [torch.logit(often) if threshold == 0.0 else often])


def _middles(part: Tensor, every: TargetFacts) -> list[Constant]:
    """Median and mean."""
    return _everywhere(part, every.middles())


def _everywhere(part: Tensor, answers: Sequence[Tensor]) -> list[Constant]:
    def answered(answer: Tensor, targets: Tensor) -> Tensor:
        return answer.to(part).reshape(part.shape[1:]).expand(len(targets), *part.shape[1:])

    return [partial(answered, answer) for answer in answers]
