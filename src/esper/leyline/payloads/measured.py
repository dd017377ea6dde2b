"""Payloads of measurements: counterfactuals and the compute ledger."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class CounterfactualComputed(TypedDict):
    """What the metric loses when this slot's alpha is set to 0 (``removal_cost``), positive when the seed helps, in the
    metric's unit and in loss; ``probe_gain`` is the same for a seed behind the host with its alpha set to 1. Standard
    errors are paired over ``examples``; ``read`` is their share of what could have been read, where reading could stop
    as soon as enough was known. ``passes`` is the cost in whole validation passes, for all slots of the row."""

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
    read: NotRequired[float]
    shared_prefix: bool
    passes: float
    alpha: float


class CounterfactualUnavailable(TypedDict):
    """No contribution of this seed was measured. ``reason`` is ``not_scheduled``, ``non_finite_loss``, ``too_early``
    (its gate cannot pass yet), ``proven`` (in this stage, and its gate was not asked since) or ``kept``."""

    reason: str
    detail: NotRequired[str]


class PromisesMeasured(TypedDict):
    """What empty slots promise: by slot the training loss per example that a candidate there, of the named blueprint,
    took off in ``steps`` steps, to first order, while candidates in all these slots learned together behind the host.
    ``macs`` is what all of it took."""

    promises: dict[str, float]
    blueprints: dict[str, str]
    steps: int
    macs: int


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


class HostVitals(TypedDict):
    """How the machine and the run's processes were, every 10 s: shares in [0, 1] and rates since the sample before,
    memory and disk in bytes. ``cpu_share`` is of all cores, by everyone; ``process_cores`` the cores' worth that the
    run used; ``memory_total`` and ``memory_available`` are what the run may use, of the host or its control group;
    ``disk_free`` is of the disk that the run writes to; ``temperature`` of the hottest zone, in degrees Celsius."""

    kind: Literal["host_vitals"]
    cores: NotRequired[int]
    cpu_share: NotRequired[float]
    io_wait_share: NotRequired[float]
    process_cores: NotRequired[float]
    process_memory: NotRequired[int]
    memory_total: NotRequired[int]
    memory_available: NotRequired[int]
    major_faults_per_second: NotRequired[float]
    read_bytes_per_second: NotRequired[float]
    write_bytes_per_second: NotRequired[float]
    disk_free: NotRequired[int]
    throttled_per_second: NotRequired[float]
    temperature: NotRequired[float]
    gpu_share: NotRequired[float]
    gpu_memory: NotRequired[int]
    gpu_memory_total: NotRequired[int]


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
    PayloadSpec(T.PROMISES_MEASURED, PromisesMeasured, Delivery.MUST_KEEP, "event feed"),
    PayloadSpec(T.COMPUTE_SPENT, ComputeSpent, Delivery.MUST_KEEP, "environment drawer, report"),
)
