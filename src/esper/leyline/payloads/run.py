"""Payloads of a run, its episodes and epochs, and the commands given to it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class MetricRecord(TypedDict):
    name: str
    unit: str
    higher_is_better: bool
    chance: NotRequired[float]


class TrainingStarted(TypedDict):
    run_id: str
    kind: str
    task: str
    policy: str
    metric: MetricRecord
    slots: list[str]
    blueprints: list[str]
    episodes: int
    envs: int
    max_epochs: int
    device: str
    threads: int
    examples: dict[str, int]
    host_parameters: int
    resumed_after_seq: NotRequired[int]


"""``kind`` is ``heuristic``, ``ppo``, ``eval``, ``bench`` or ``library``."""


class TrainingEnded(TypedDict):
    status: str
    reason: NotRequired[str]
    seconds: float
    cpu_seconds: NotRequired[float]
    events: NotRequired[int]


"""``status`` is ``completed``, ``failed``, ``interrupted`` or ``preempted``."""


class EpisodeStarted(TypedDict):
    seed: int
    policy: str
    arm: str
    max_epochs: int
    host_parameters: int


"""``arm`` tells the grown host (``grown``) from its paired control (``static``)."""


class SeedRecord(TypedDict):
    slot_id: str
    seed_id: str
    blueprint: str
    stage: str
    parameters: int
    epoch_germinated: int
    reason: NotRequired[str]
    removal_cost: NotRequired[float]


class EpisodeEnded(TypedDict):
    seed: int
    policy: str
    arm: str
    epochs: int
    validation_metric: NotRequired[float]
    validation_loss: NotRequired[float]
    test_metric: NotRequired[float]
    test_loss: NotRequired[float]
    test_examples: NotRequired[int]
    host_parameters: int
    total_parameters: int
    train_macs: NotRequired[int]
    total_macs: NotRequired[int]
    inference_macs: NotRequired[int]
    seconds: float
    seeds: list[SeedRecord]
    status: str


class EpochCompleted(TypedDict):
    arm: NotRequired[str]
    train_loss: NotRequired[float]
    validation_loss: NotRequired[float]
    validation_metric: NotRequired[float]
    host_gradient_norm: NotRequired[float]
    learning_rate: NotRequired[float]
    parameters: int
    live_seeds: int
    alphas: dict[str, float]
    stages: dict[str, str]
    train_ms: NotRequired[float]
    validate_ms: NotRequired[float]
    counterfactual_ms: NotRequired[float]
    input_wait_ms: NotRequired[float]
    policy_ms: NotRequired[float]
    seed_gradient_norm_ratios: NotRequired[dict[str, float]]
    gradient_healths: NotRequired[dict[str, float]]


"""Commit barrier of an epoch: last of its epoch for its environment."""


class Command(TypedDict):
    op: str
    slot: NotRequired[str]
    blueprint: NotRequired[str]
    blend: NotRequired[str]
    alpha_target: NotRequired[float]
    tempo: NotRequired[int]
    reason: NotRequired[str]
    evidence: NotRequired[dict[str, float]]
    why_not: NotRequired[str]


class ModelExported(TypedDict):
    path: str
    parameters: int
    max_abs_difference: float
    formats: list[str]


SPECS = (
    PayloadSpec(
        T.TRAINING_STARTED, TrainingStarted, Delivery.MUST_KEEP, "simic.training, simic.vectorized", "run header"
    ),
    PayloadSpec(
        T.TRAINING_ENDED, TrainingEnded, Delivery.MUST_KEEP, "simic.training, simic.vectorized", "run header, run list"
    ),
    PayloadSpec(T.EPISODE_STARTED, EpisodeStarted, Delivery.MUST_KEEP, "tolaria.executor", "flight board"),
    PayloadSpec(
        T.EPISODE_ENDED, EpisodeEnded, Delivery.MUST_KEEP, "tolaria.executor", "end table, report, leaderboard"
    ),
    PayloadSpec(
        T.EPOCH_COMPLETED, EpochCompleted, Delivery.MUST_KEEP, "tolaria.executor", "flight board, curves, report"
    ),
    PayloadSpec(T.COMMAND_ISSUED, Command, Delivery.MUST_KEEP, "tolaria.executor", "action history"),
    PayloadSpec(T.COMMAND_EXECUTED, Command, Delivery.MUST_KEEP, "tolaria.executor", "action history"),
    PayloadSpec(T.COMMAND_FAILED, Command, Delivery.MUST_KEEP, "tolaria.executor", "action history, seed inspector"),
    PayloadSpec(T.MODEL_EXPORTED, ModelExported, Delivery.MUST_KEEP, "kasmina.export", "end table, event feed"),
)
