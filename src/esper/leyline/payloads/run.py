"""Payloads of a run, its episodes and epochs, and the commands given to it."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from esper.leyline.payloads._spec import PayloadSpec
from esper.leyline.telemetry import Delivery
from esper.leyline.telemetry import TelemetryEventType as T


class MetricRecord(TypedDict):
    """What the task is measured by; ``chance`` is what guessing would reach."""

    name: str
    unit: str
    higher_is_better: bool
    chance: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]


class PartRecord(TypedDict):
    """A module of the host, or what one ``around`` other parts has and does itself. ``macs`` are of one example,
    ``calls`` of one pass; parameters that a part before it has too are not counted again."""

    path: str
    kind: str
    parameters: int
    macs: int
    calls: int
    around: NotRequired[bool]


class SiteRecord(TypedDict):
    """Where a slot sits: behind the module at ``path``, or ``beside`` it."""

    slot: str
    path: str
    beside: bool


class HostRecord(TypedDict):
    """What the host is made of, in the order of its calls, and where it can grow. ``macs`` are of one example; of a
    host of more than 5,000 parts there are none."""

    macs: int
    sites: list[SiteRecord]
    parts: list[PartRecord]


class TrainingStarted(TypedDict):
    """What is about to run, or to go on. ``kind`` is ``heuristic``, ``ppo``, ``eval`` or ``library``."""

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
    host: NotRequired[HostRecord]
    resumed_after_seq: NotRequired[int]


class TrainingEnded(TypedDict):
    """The run is over. ``status`` is ``completed``, ``failed``, ``interrupted`` or ``preempted``."""

    status: str
    reason: NotRequired[str]
    seconds: float
    cpu_seconds: NotRequired[float]
    events: NotRequired[int]


class EpisodeStarted(TypedDict):
    """A host was made afresh. ``arm`` tells the grown host (``grown``) from its paired control (``static``)."""

    seed: int
    policy: str
    arm: str
    max_epochs: int
    host_parameters: int


class SeedRecord(TypedDict):
    """What became of one seed of an episode."""

    slot_id: str
    seed_id: str
    blueprint: str
    stage: str
    parameters: int
    epoch_germinated: int
    reason: NotRequired[str]
    removal_cost: NotRequired[float]


class EpisodeEnded(TypedDict):
    """What an episode came to. The test split is touched here alone; missing where there is none.

    Figures and ``seeds`` are of the network as it is in the end. ``delivered`` is ``last`` or ``best`` where one is
    delivered: as training left it, without the unproven seeds that validation is no worse without, or as it was
    validated after ``delivered_epoch``, with every seed that took part then; ``reason`` of a seed says that it is not
    proven. Its validation figures are the best of those that were seen, and flatter it.
    """

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
    delivered: NotRequired[str]
    delivered_epoch: NotRequired[int]


class EpochCompleted(TypedDict):
    """What one epoch of one environment came to. It is the last event of its epoch, so that what was said is whole.
    ``inference_macs`` are of one example's forward pass through the network as it is now, ``seed_macs`` those of them
    that are the newest live seed's, by slot. ``last_good_epoch``: whose state the governor would go back to.
    Where ``stacked_envs`` were trained as one computation, ``stack_train_ms`` is the time of all of them, and an env
    has no ``train_ms`` of its own."""

    arm: NotRequired[str]
    train_loss: NotRequired[float]
    validation_loss: NotRequired[float]
    validation_metric: NotRequired[float]
    host_gradient_norm: NotRequired[float]
    learning_rate: NotRequired[float]
    parameters: int
    inference_macs: NotRequired[int]
    live_seeds: int
    last_good_epoch: NotRequired[int]
    alphas: dict[str, float]
    stages: dict[str, str]
    train_ms: NotRequired[float]
    stack_train_ms: NotRequired[float]
    stacked_envs: NotRequired[int]
    validate_ms: NotRequired[float]
    counterfactual_ms: NotRequired[float]
    input_wait_ms: NotRequired[float]
    policy_ms: NotRequired[float]
    seed_gradient_norm_ratios: NotRequired[dict[str, float]]
    gradient_healths: NotRequired[dict[str, float]]
    seed_macs: NotRequired[dict[str, int]]


class Command(TypedDict):
    """What the policy asked of a slot, with its reason and evidence; ``why_not`` says why it was refused."""

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
    """A plain model was written; ``max_abs_difference`` is between its outputs and those of the grown one.

    ``parameters`` are those of what was written: a seed that was ``folded`` (by id) into a weight of the host has none
    there, and counts in ``trained_parameters``. ``unfolded``: why another one beside a module is a module of its own.
    """

    path: str
    parameters: int
    max_abs_difference: float
    formats: list[str]
    trained_parameters: NotRequired[int]
    folded: NotRequired[list[str]]
    unfolded: NotRequired[dict[str, str]]


SPECS = (
    PayloadSpec(T.TRAINING_STARTED, TrainingStarted, Delivery.MUST_KEEP, "run header"),
    PayloadSpec(T.TRAINING_ENDED, TrainingEnded, Delivery.MUST_KEEP, "run header, run list"),
    PayloadSpec(T.EPISODE_STARTED, EpisodeStarted, Delivery.MUST_KEEP, "flight board"),
    PayloadSpec(T.EPISODE_ENDED, EpisodeEnded, Delivery.MUST_KEEP, "end table, report, leaderboard"),
    PayloadSpec(T.EPOCH_COMPLETED, EpochCompleted, Delivery.MUST_KEEP, "flight board, curves, report"),
    PayloadSpec(T.COMMAND_ISSUED, Command, Delivery.MUST_KEEP, "action history"),
    PayloadSpec(T.COMMAND_EXECUTED, Command, Delivery.MUST_KEEP, "action history"),
    PayloadSpec(T.COMMAND_FAILED, Command, Delivery.MUST_KEEP, "action history, seed inspector"),
    PayloadSpec(T.MODEL_EXPORTED, ModelExported, Delivery.MUST_KEEP, "end table, event feed"),
)
