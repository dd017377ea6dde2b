"""What seeds behind the host need to learn from a loss, kept from its forward pass to the end of its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from esper.kasmina.replay import Tape


@dataclass(eq=False, slots=True)
class Lesson:
    """One loss. ``criterion`` maps what the tape's replay gives to it."""

    criterion: Callable[[Any], Tensor]
    probing: tuple[str, ...]
    """Slots whose seed learns from it in a second pass."""
    tape: Tape | None
    again: Callable[[], Tensor] | None = None
    """Makes the pass and the loss anew, where an audition asks for it."""
    examples: int = 0
    times: float = 1.0
    """What the loss must be multiplied by to be that of its batch alone."""
    gradients: list[Tensor] = field(default_factory=list)
    """Of what is minimised with respect to the loss, one for each backward pass that reached it."""
    over: bool = False


def weight(lessons: Sequence[Lesson]) -> float:
    """What the losses are multiplied by in what is minimised, together; 1 where nothing of them is left in it."""
    total = sum(float(g.abs().sum()) / lesson.times for lesson in lessons for g in lesson.gradients)
    return total if total > 0.0 else 1.0
