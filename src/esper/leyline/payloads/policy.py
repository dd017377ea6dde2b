"""Payloads of a policy that acts and learns, of its analytics snapshots, and of detectors of trouble.

``ANALYTICS_SNAPSHOT`` is a union told apart by ``kind``. Everything a detector says is a measured figure, the threshold
it crossed, and over how many rounds it was measured; a *round* is one rollout and one update, counted from 1.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.payloads.measured import HostVitals
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class LastAction(TypedDict):
    """The action of one step of one environment. ``masked``: for each head that the op consumed, whether availability
    forbade some of its choices. ``reward`` is what the step paid, ``objective`` what the environment was worth after
    it, both in the metric's unit."""

    kind: Literal["last_action"]
    op: str
    slot: NotRequired[str]
    blueprint: NotRequired[str]
    blend: NotRequired[str]
    alpha_target: NotRequired[float]
    tempo: NotRequired[int]
    masked: dict[str, bool]
    success: bool
    illegal: bool
    reward: float
    objective: float
    why_not: NotRequired[str]


class ActionDistribution(TypedDict):
    """How often each op was chosen in a round, and how often it succeeded."""

    kind: Literal["action_distribution"]
    round: int
    steps: int
    ops: dict[str, int]
    succeeded: dict[str, int]


class Throughput(TypedDict):
    """How fast one environment steps: its own mean time per step (a host epoch). ``fps`` is steps per second; ``None``
    in the event, so missing on the wire, where the time was zero or below."""

    kind: Literal["throughput"]
    batch_idx: int
    episodes_completed: int
    step_time_ms: float
    dataloader_wait_ms: float
    fps: NotRequired[float]


class RewardSummary(TypedDict):
    """What one finished episode paid. ``components`` sum to ``episode_return``; ``objective_gain`` is final minus
    initial J, whatever the mode pays."""

    kind: Literal["reward_summary"]
    mode: str
    round: int
    steps: int
    episode_return: float
    objective_gain: float
    unit: str
    components: dict[str, float]


class MaskHitRates(TypedDict):
    """How far masks decided. Per head, of the steps at which its op consumed it: the share in which a mask forbade
    something, and the share in which only one choice was left. A head that was never consumed has no rate."""

    kind: Literal["mask_hit_rates"]
    round: int
    steps: int
    consumed: dict[str, int]
    restricted: dict[str, float]
    forced: dict[str, float]


class DiagnosticSnapshot(TypedDict):
    """What ``DiagnosticTracker`` measured in one epoch of a host, as its profile asks: ``EpochSnapshot.to_dict()``."""

    kind: Literal["diagnostic_snapshot"]
    snapshot: dict[str, Any]


class HeadUndecided(TypedDict):
    """How undecided one head is: its entropy in nats where it had a choice, what it would be if all legal choices were
    equally likely, and the share of steps with a choice."""

    entropy: float
    most: float
    share: float


class PpoUpdateCompleted(TypedDict):
    """One round of PPO. Figures of the very ratio in the loss; entropies in nats; gradient norm before clipping.
    Multiply-accumulates of the policy in this round: of acting, which ``COMPUTE_SPENT`` of each episode also holds as
    its ``policy_macs``, and of learning."""

    round: int
    lr: float
    update_time_ms: float
    steps: int
    epochs_run: int
    optimizer_steps: int
    skipped_steps: int
    stopped_by_kl: bool
    policy_loss: float
    value_loss: float
    entropy: float
    heads: dict[str, HeadUndecided]
    grad_norm: NotRequired[float]
    kl: float
    clip_fraction: float
    ratio_min: float
    ratio_max: float
    stale_log_prob: float
    explained_variance: NotRequired[float]
    value_mean: float
    return_mean: float
    return_std: float
    advantage_mean: float
    advantage_std: float
    episodes_completed: NotRequired[int]
    mean_episode_return: NotRequired[float]
    mean_objective_gain: NotRequired[float]
    acting_macs: NotRequired[int]
    update_macs: NotRequired[int]


class RewardComputed(TypedDict):
    """The reward of one step of one environment and its parts, in the metric's unit; ``objective`` is J after it."""

    mode: str
    total: float
    objective: float
    components: dict[str, float]
    rolled_back: bool


class Detected(TypedDict):
    """A figure crossed its threshold. ``figure`` names what was measured, in words with its unit; ``baseline`` is what
    it is compared with."""

    round: int
    measured: float
    threshold: float
    figure: str
    rounds: NotRequired[int]
    head: NotRequired[str]
    baseline: NotRequired[float]


_PULSE = "policy pulse, event feed"


def _detector(event_type: T) -> PayloadSpec:
    return PayloadSpec(event_type, Detected, Delivery.MUST_KEEP, _PULSE)


SPECS = (
    PayloadSpec(
        T.ANALYTICS_SNAPSHOT,
        LastAction | ActionDistribution | Throughput | RewardSummary | MaskHitRates | DiagnosticSnapshot | HostVitals,
        Delivery.LATEST_WINS,
        "policy pulse, body vitals, diagnostics",
    ),
    PayloadSpec(T.PPO_UPDATE_COMPLETED, PpoUpdateCompleted, Delivery.MUST_KEEP, "policy pulse"),
    PayloadSpec(T.REWARD_COMPUTED, RewardComputed, Delivery.SAMPLED, "environment drawer"),
    *(
        _detector(event_type)
        for event_type in (
            T.REWARD_HACKING_SUSPECTED,
            T.PLATEAU_DETECTED,
            T.DEGRADATION_DETECTED,
            T.IMPROVEMENT_DETECTED,
            T.RATIO_EXPLOSION_DETECTED,
            T.RATIO_COLLAPSE_DETECTED,
            T.VALUE_COLLAPSE_DETECTED,
            T.NUMERICAL_INSTABILITY_DETECTED,
            T.HEAD_COLLAPSE_DETECTED,
            T.MEMORY_WARNING,
            T.PERFORMANCE_DEGRADATION,
        )
    ),
)
