"""What a gate asks, and what it answers: every check with its measured value, threshold and comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esper.leyline.errors import UsageError
from esper.leyline.metric import Metric
from esper.leyline.stages import GateLevel, SeedStage

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


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """What a seed must show. Bounds are inclusive unless they say "above". None is in a unit that a user chose.

    Gates decide by them, and rules foresee gates by the same ones, which they find in the view.
    """

    min_training_epochs: int = 3
    """G2: epochs in TRAINING."""
    min_gradient_ratio: float = 0.05
    """G2: size-corrected gradient norm of the seed over the host's."""
    min_gradient_health: float = 0.7
    """G2 and G5: gradient health, in [0, 1]."""
    max_isolation_violations: int = 0
    """G2: passes in which gradient reached the host through the isolated seed."""
    min_holding_epochs: int = 2
    """G5: epochs in HOLDING."""
    min_removal_cost: float = 0.005
    """G5: what the metric may be known to lose without the seed at the least, as a share of its scale: half a point of
    a percentage. The loss proves a gain; a seed is not kept where the metric is certainly not worth so much."""
    confidence_z: float = 1.645
    """G5: standard errors above 0 that would make a gain in loss certain, were there but one look at it (95 %,
    one-sided). All looks of the stage together keep that error rate (:mod:`esper.kasmina.sequential`). 0 asks for the
    sign alone, of the whole of validation."""
    blending_z: float = 0.842
    """G2: the same for a gain behind the host (80 %): a seed that was blended in by mistake can be taken out again, one
    that was kept cannot."""
    ask_for_gain: bool = True
    """G2 and G5: whether a gain must be measured. Without, seeds are kept unseen: a control arm."""
    metric: Metric | None = None
    """What removal is measured in; the trainer fills it in."""

    def __post_init__(self) -> None:
        for name in (
            "min_training_epochs",
            "min_gradient_ratio",
            "max_isolation_violations",
            "min_holding_epochs",
            "confidence_z",
            "blending_z",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(f"gate threshold {name} is {getattr(self, name)}; it must be 0 or more")
        if not 0.0 <= self.min_gradient_health <= 1.0:
            raise UsageError(f"gate threshold min_gradient_health is {self.min_gradient_health}; health is from 0 to 1")
        if not 0.0 <= self.min_removal_cost <= 1.0:
            raise UsageError(
                f"gate threshold min_removal_cost is {self.min_removal_cost}; "
                "it is a share of the metric's scale, from 0 to 1"
            )

    def shortest_life(self, tempo: int = 1) -> int:
        """Epochs from germination to the earliest fossilization, with an alpha ramp of ``tempo`` epochs."""
        return 1 + self.min_training_epochs + tempo + self.min_holding_epochs

    def least_epochs(self, stage: SeedStage) -> int | None:
        """Epochs in ``stage`` before its gate can pass; ``None`` where no evidence is asked for."""
        return {SeedStage.TRAINING: self.min_training_epochs, SeedStage.HOLDING: self.min_holding_epochs}.get(stage)

    @property
    def unit(self) -> str | None:
        """Unit of the metric."""
        return None if self.metric is None else self.metric.unit

    @property
    def least_removal_cost(self) -> float:
        """What the metric must at least be able to lose without the seed, in its unit; 0 where it has no scale."""
        span = None if self.metric is None else self.metric.span
        return 0.0 if span is None else self.min_removal_cost * span
