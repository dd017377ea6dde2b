"""What a gate answers: every check with its measured value, threshold and comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.leyline.stages import GateLevel

Comparison = Literal[">=", ">", "<=", "<", "==", "is"]


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One measured comparison. ``measured`` is ``None`` when there was nothing to measure, and then the check fails."""

    id: str
    measured: float | bool | str | None
    comparison: Comparison
    threshold: float | bool | str
    passed: bool
    unit: str | None = None

    def summary(self) -> str:
        """Stable id with the figure (``removal_cost=0.42``), or ``<id>_not_measured``."""
        if self.measured is None:
            return f"{self.id}_not_measured"
        if isinstance(self.measured, float):
            return f"{self.id}={self.measured:.4g}"
        return f"{self.id}={self.measured}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """Verdict of one gate.

    ``checks_passed`` and ``checks_failed`` hold short stable ids with the measured figure; ``checks`` holds the
    structured form. ``score`` is the share of checks that passed, in [0, 1].
    """

    gate: GateLevel | None
    passed: bool
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    score: float
    message: str
    checks: tuple[GateCheck, ...] = ()

    def __bool__(self) -> bool:
        return self.passed
