"""Payloads of a seed's life. The two with ``from`` are functional, since it is a keyword."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class SlotHealth(TypedDict):
    """Slot health, on every lifecycle event; each key is missing until it was measured."""

    alpha: NotRequired[float]
    blueprint: NotRequired[str]
    parameters: NotRequired[int]
    seed_gradient_norm_ratio: NotRequired[float]
    seed_gradient_norm_ratio_epoch: NotRequired[int]
    isolation_violations: NotRequired[int]
    isolation_violations_epoch: NotRequired[int]
    gradient_health: NotRequired[float]
    gradient_health_epoch: NotRequired[int]
    has_vanishing: NotRequired[bool]
    has_exploding: NotRequired[bool]
    removal_cost: NotRequired[float]
    removal_cost_epoch: NotRequired[int]
    probe_gain: NotRequired[float]
    probe_gain_epoch: NotRequired[int]


_From = TypedDict("_From", {"from": str})
_MaybeFrom = TypedDict("_MaybeFrom", {"from": NotRequired[str]})


class GateCheckRecord(TypedDict):
    """One check of a gate; ``measured`` is missing when there was nothing to measure."""

    id: str
    measured: NotRequired[float | bool | str]
    comparison: str
    threshold: float | bool | str
    passed: bool
    unit: NotRequired[str]


class SeedGerminated(SlotHealth):
    """A seed was built in the slot and passed G0."""

    blend: str
    incubation: str
    tempo: int
    alpha_target: float
    generation: NotRequired[int]
    """How many seeds the slot had kept before."""


class SeedGateEvaluated(_MaybeFrom, SlotHealth):
    """One evaluation of one gate, passed or not, emitted before any transition."""

    gate: str
    passed: bool
    target_stage: str
    checks_passed: list[str]
    checks_failed: list[str]
    message: str
    score: NotRequired[float]
    checks: NotRequired[list[GateCheckRecord]]


class SeedStageChanged(_From, SlotHealth):
    """The slot moved ``from`` one stage ``to`` another."""

    to: str
    reason: NotRequired[str]
    epochs_in_stage: NotRequired[int]


class SeedAlphaRetargeted(SlotHealth):
    """A ramp from ``alpha_from`` to ``alpha_target`` over ``tempo`` epochs began."""

    alpha_from: float
    alpha_target: float
    tempo: int
    blend: str


class SeedFossilized(SlotHealth):
    """The seed is kept for good."""

    age_epochs: int
    removal_cost_se: NotRequired[float]
    removal_cost_loss: NotRequired[float]
    unit: NotRequired[str]


class SeedPruned(_From, SlotHealth):
    """The seed is gone; ``by`` is ``policy``, ``governor`` or ``lifecycle``."""

    reason: str
    age_epochs: int
    by: NotRequired[str]
    embargo_epochs: NotRequired[int]


class SlotReopened(SlotHealth):
    """The slot is DORMANT again; the seed, which was kept, stays beneath what comes. ``generation`` counts those that
    were kept, of which there may be ``generations``."""

    generation: int
    generations: int


class TransitionVetoed(_From, SlotHealth):
    """A move that was not made; ``by`` is ``lifecycle`` (illegal), ``budget``, ``consensus`` or ``governor``."""

    target_stage: str
    by: str
    reason: str
    op: NotRequired[str]


class IsolationViolation(SlotHealth):
    """Gradient reached the host through the seed while it should have been isolated."""

    host_gradient_norm: float
    violations: int


_SEEDS = "seed inspector, lifecycle swimlane, event feed"

SPECS = (
    PayloadSpec(T.SEED_GERMINATED, SeedGerminated, Delivery.MUST_KEEP, _SEEDS),
    PayloadSpec(T.SEED_GATE_EVALUATED, SeedGateEvaluated, Delivery.MUST_KEEP, "seed inspector (why blocked)"),
    PayloadSpec(T.SEED_STAGE_CHANGED, SeedStageChanged, Delivery.MUST_KEEP, _SEEDS),
    PayloadSpec(T.SEED_ALPHA_RETARGETED, SeedAlphaRetargeted, Delivery.MUST_KEEP, _SEEDS),
    PayloadSpec(T.SEED_FOSSILIZED, SeedFossilized, Delivery.MUST_KEEP, "seed census, end table, report"),
    PayloadSpec(T.SEED_PRUNED, SeedPruned, Delivery.MUST_KEEP, "seed census, end table, report"),
    PayloadSpec(T.SLOT_REOPENED, SlotReopened, Delivery.MUST_KEEP, _SEEDS),
    PayloadSpec(
        T.TRANSITION_VETOED,
        TransitionVetoed,
        Delivery.MUST_KEEP,
        "seed inspector, governor history",
    ),
    PayloadSpec(T.ISOLATION_VIOLATION, IsolationViolation, Delivery.MUST_KEEP, "seed inspector"),
)
