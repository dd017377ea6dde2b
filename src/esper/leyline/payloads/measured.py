"""Payloads of measurements: counterfactuals and the compute ledger."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class CounterfactualComputed(TypedDict):
    """What the metric loses when this slot's alpha is set to 0 (``removal_cost``), positive when the seed helps, in the
    metric's unit and in loss; ``probe_gain`` is the same for a seed behind the host with its alpha set to 1. Standard
    errors are paired over ``examples``. ``passes`` is the cost in whole validation passes, for all slots of the row."""

    removal_cost: NotRequired[float]
    removal_cost_se: NotRequired[float]
    removal_cost_loss: NotRequired[float]
    removal_cost_loss_se: NotRequired[float]
    probe_gain: NotRequired[float]
    probe_gain_se: NotRequired[float]
    probe_gain_loss: NotRequired[float]
    probe_gain_loss_se: NotRequired[float]
    shapley: NotRequired[float]
    all_off_metric: NotRequired[float]
    all_off_loss: NotRequired[float]
    interaction: NotRequired[float]
    unit: str
    examples: int
    shared_prefix: bool
    passes: float
    alpha: float


class CounterfactualUnavailable(TypedDict):
    """No contribution of this seed was measured. ``reason`` is ``not_scheduled`` or ``non_finite_loss``."""

    reason: str
    detail: NotRequired[str]


class ComputeSpent(TypedDict):
    """Multiply-accumulates since the episode began. ``discarded_seed_macs`` is the part of the others that went into
    seeds that were pruned; it is not added to ``total_macs`` again."""

    train_forward_macs: int
    train_backward_macs: int
    probe_macs: int
    validation_macs: int
    counterfactual_macs: int
    discarded_seed_macs: int
    test_macs: int
    policy_macs: int
    total_macs: int
    seconds: float
    arm: NotRequired[str]


SPECS = (
    PayloadSpec(
        T.COUNTERFACTUAL_COMPUTED,
        CounterfactualComputed,
        Delivery.MUST_KEEP,
        "environment drawer, report",
    ),
    PayloadSpec(
        T.COUNTERFACTUAL_UNAVAILABLE,
        CounterfactualUnavailable,
        Delivery.MUST_KEEP,
        "environment drawer",
    ),
    PayloadSpec(T.COMPUTE_SPENT, ComputeSpent, Delivery.MUST_KEEP, "environment drawer, report"),
)
