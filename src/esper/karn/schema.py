"""The one snapshot schema, for every face. ``web/src`` gets its TypeScript types from :func:`json_schema`.

A missing key is a value that was not measured. NaN and infinities are the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``. Times are wall-clock seconds since 1970; ages are left to the face, except for ``stale``.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from esper.karn.parts import Curve, Factor, Figure, Level, Number, Part, Shared
from esper.karn.picture import Network

SNAPSHOT_SCHEMA: Final = 1


class Chip(Part, kw_only=True, frozen=True):
    """One slot at a glance."""

    slot: str
    glyph: str
    stage: str | None = None
    seed: str | None = None
    blueprint: str | None = None
    alpha: Figure | None = None
    gate: str | None = None
    """The last gate evaluated."""
    gate_passed: bool | None = None
    removal_cost: Figure | None = None
    generations: str | None = None


class EnvironmentFacts(Shared, kw_only=True):
    """What the fold of an environment knows and the board shows as it is."""

    env: int
    device: str
    level: Level
    score: float
    rank: float
    status: str
    arm: str | None = None
    policy: str | None = None
    seed: str | None = None
    """Of the episode, in digits: a browser rounds integers beyond 2**53."""
    episode: int | None = None
    epoch: int | None = None
    max_epochs: int | None = None


class EnvironmentRow(EnvironmentFacts, kw_only=True):
    """One environment on the flight board."""

    factors: list[Factor] = []
    metric: Figure | None = None
    best: Figure | None = None
    loss: Figure | None = None
    parameters: Figure | None = None
    host_parameters: int | None = None
    step_ms: Figure | None = None
    """Time of the last epoch: the parts that were measured, added up."""
    slots: dict[str, Chip] = {}
    spark: list[Number] = []
    last_action: str | None = None
    last_time: float | None = None
    """When it last said anything."""


class Check(Part, kw_only=True, frozen=True):
    """One check of a gate."""

    id: str
    passed: bool
    text: str
    comparison: str
    threshold: bool | int | float | str
    measured: bool | int | float | str | None = None
    unit: str | None = None


class GateFacts(Shared, kw_only=True):
    """What the fold of a gate knows and a face shows as it is."""

    gate: str
    passed: bool
    target: str
    text: str
    evaluations: int
    failures: int


class Gate(GateFacts, kw_only=True):
    """The last evaluation of one gate."""

    checks: list[Check] = []
    epoch: int | None = None
    time: float | None = None


class SeedFacts(Shared, kw_only=True):
    """What the fold of a seed knows and the inspector shows as it is."""

    seed: str
    slot: str
    blueprint: str | None = None
    stage: str | None = None
    germinated_epoch: int | None = None
    incubation: str | None = None
    blend: str | None = None
    tempo: int | None = None
    alpha_target: float | None = None
    parameters: int | None = None


class Seed(SeedFacts, kw_only=True):
    """The seed inspector."""

    facts: dict[str, Figure] = {}
    gates: list[Gate] = []
    blocked: str | None = None
    """Why it does not move on, in words; absent when its last gate passed."""
    unavailable: str | None = None
    """Why its last counterfactual could not be computed."""
    veto: str | None = None
    ended: str | None = None
    """How and why it was kept or pruned."""
    left_out: str | None = None
    """Why it is not in the network that is delivered, though it was kept."""
    alpha: Curve | None = None
    contribution: Curve | None = None


class Stretch(Part, kw_only=True, frozen=True):
    """A stretch of the lifecycle swimlane; without ``until`` it lasts."""

    stage: str
    since: int
    until: int | None = None
    seed: str | None = None


class Slot(Part, kw_only=True, frozen=True):
    """One slot in the environment drawer; ``kept`` are seeds beneath, the oldest first, ``generations`` in words."""

    slot: str
    stage: str | None = None
    seed: Seed | None = None
    kept: list[Seed] = []
    generations: str | None = None
    past: list[Seed] = []
    seeds_seen: int = 0
    swimlane: list[Stretch] = []


class Action(Part, kw_only=True, frozen=True):
    """One command and what became of it. Heads that the op does not consume are in ``unused``."""

    op: str
    outcome: str
    epoch: int | None = None
    time: float | None = None
    slot: str | None = None
    blueprint: str | None = None
    blend: str | None = None
    alpha_target: float | None = None
    tempo: int | None = None
    """Epochs that the ramp takes."""
    reason: str | None = None
    why_not: str | None = None
    evidence: dict[str, Number] = {}
    masked: list[str] = []
    """Heads of which masks forbade some choices."""
    unused: list[str] = []


class EnvironmentDetail(Part, kw_only=True, frozen=True):
    """The environment drawer."""

    row: EnvironmentRow
    metric: Curve
    loss: Curve
    facts: dict[str, Figure]
    slots: dict[str, Slot]
    actions: list[Action]
    actions_seen: int
    compute: dict[str, Figure]
    non_finite: list[str]
    rollbacks: int
    diagnostics: dict[str, Any] = {}
    diagnostics_epoch: int | None = None
    network: Network | None = None


class FeedItem(Part, kw_only=True, frozen=True):
    """One event in the feed."""

    id: str
    type: str
    severity: str
    text: str
    time: float | None = None
    episode: int | None = None
    epoch: int | None = None
    env: int | None = None
    slot: str | None = None
    seed: str | None = None
    stage: str | None = None
    blueprint: str | None = None
    gate: str | None = None


class Pulse(Part, kw_only=True, frozen=True):
    """One figure of the policy's pulse with its verdict."""

    name: str
    figure: Figure
    level: Level
    unit: str
    text: str
    threshold: float | None = None
    """Where it stops being ok; without one it is not judged."""
    low_is_bad: bool = False


class Progress(Part, kw_only=True, frozen=True):
    """How far the run is; without ``eta`` the pace is not known yet."""

    epochs_done: int
    epochs_total: int | None = None
    share: float | None = None
    eta_seconds: float | None = None


class RunFacts(Shared, kw_only=True):
    """What the fold of the run knows and the header shows as it is."""

    run_id: str | None = None
    kind: str | None = None
    task: str | None = None
    policy: str | None = None
    metric: str | None = None
    unit: str = ""
    higher_is_better: bool = True
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    """Ends of the metric's range, where it has them."""
    slots: list[str] = []
    """In network order, with any the events named besides."""
    blueprints: list[str] = []
    envs: int | None = None
    episodes: int | None = None
    episodes_ended: int = 0
    max_epochs: int | None = None
    device: str | None = None
    threads: int | None = None
    examples: dict[str, int] = {}
    host_parameters: int | None = None
    started: float | None = None
    resumed: int = 0
    end_status: str | None = None
    level: str | None = None
    lifecycle_only: bool = False
    suppressed: list[str] = []
    checkpoint: str | None = None
    """The last save or load of one, in words."""
    exported: str | None = None


class RunHeader(RunFacts):
    """What runs, and how it is."""

    # not keyword-only as the facts are, so that they stand before them on the wire
    state: Literal["reading", "waiting", "running", "silent", "ended"]
    """``ended`` only after an end event; ``silent`` is not a verdict on the process."""
    text: str
    progress: Progress


class StepSplit(Part, kw_only=True, frozen=True):
    """Where an epoch's time goes, in milliseconds, mean over the environments' last epochs."""

    train: Number | None = None
    input_wait: Number | None = None
    """Part of ``train``."""
    validate: Number | None = None
    counterfactual: Number | None = None
    policy: Number | None = None
    environments: int = 0
    """How many environments the means are over."""


class HostVitals(Part, kw_only=True, frozen=True):
    """The newest sample that the journal holds. Shares are in [0, 1]."""

    time: float
    cpu_share: float | None = None
    """Of all cores, by everyone."""
    process_cores: float | None = None
    """Cores' worth of CPU time that the run uses."""
    cores: int | None = None
    process_memory: int | None = None
    memory_total: int | None = None
    """Bytes that the run may use: the host's, or its control group's where those leave it less."""
    memory_available: int | None = None
    io_wait_share: float | None = None
    read_bytes_per_second: float | None = None
    write_bytes_per_second: float | None = None
    disk_free: int | None = None
    """Bytes left on the disk that the run writes to."""
    major_faults_per_second: float | None = None
    temperature: float | None = None
    """Hottest thermal zone, degrees Celsius."""
    throttled_per_second: float | None = None
    """Thermal throttling events."""
    gpu_share: float | None = None
    gpu_memory: int | None = None
    gpu_memory_total: int | None = None


class Bound(Part, kw_only=True, frozen=True):
    """What limits the run, and what to do about it."""

    kind: Literal["compute", "memory", "input", "sync", "thermal", "unknown"]
    text: str
    advice: str
    evidence: dict[str, Number] = {}


class DeviceGroup(Part, kw_only=True, frozen=True):
    """Environments of one device, the worst first."""

    device: str
    environments: list[int]
    level: Level


class Census(Part, kw_only=True, frozen=True):
    """What became of the seeds of one blueprint."""

    blueprint: str
    germinated: int
    fossilized: int
    pruned: int
    refused: int
    """Failed evaluations of any gate."""


class Leader(Part, kw_only=True, frozen=True):
    """A finished episode."""

    arm: str
    policy: str
    seed: str
    epochs: int
    status: str
    parameters: int
    growth: float | None = None
    """Parameters added, as a share of the host's."""
    seeds_kept: int
    seconds: Number
    env: int | None = None
    episode: int | None = None
    delivered: str | None = None
    """``best`` or ``last``: which state of the network is handed over."""
    delivered_epoch: int | None = None
    """Epoch that the ``best`` one is of."""
    validation: Number | None = None
    test: Number | None = None
    total_macs: float | None = None


class ArmResult(Part, kw_only=True, frozen=True):
    """What one arm came to, the mean over its episodes; without ``low`` and ``high`` there is no interval."""

    arm: str
    split: str
    mean: Number
    text: str
    """The figure as the words beside it have it, without its unit."""
    n: int
    low: Number | None = None
    high: Number | None = None
    values: list[Number] = []
    """The values themselves where they are too few for an interval."""
    parameters: float | None = None
    judged: bool = False
    """Whether it is the arm that the verdict is about."""


class Finding(Part, kw_only=True, frozen=True):
    """One line of a verdict: what it is about, in one word, and what there is to say."""

    about: str
    text: str
    level: Level


class Verdict(Part, kw_only=True, frozen=True):
    """Is the run good, why, and what next. :mod:`esper.karn.verdict` finds the words for every face."""

    level: Level
    headline: str
    findings: list[Finding]
    arms: list[ArmResult] = []
    command: str | None = None
    """What to type next."""
    why: str = ""
    """What that would tell, or what there is to wait for."""
    tell: list[str] = []
    """Of what a person who is not looking is told: see :data:`esper.karn.judge.TELL`."""


class Drop(Part, kw_only=True, frozen=True):
    """Events that a sink lost."""

    sink: str
    type: str
    reason: str
    count: int


class Damage(Part, kw_only=True, frozen=True):
    """Something wrong with the journal, or out of the ordinary."""

    kind: Literal["torn", "damaged", "resumed", "newer", "replaced"]
    text: str


class Clock(Part, kw_only=True, frozen=True):
    """Position in the journal, and the clock the snapshot was built at."""

    events: int
    now: float
    time: float | None = None
    """Time of the newest event."""
    silent_for: float | None = None
    """Seconds from the newest event to ``now``; absent once the run has ended."""


class Snapshot(Part, kw_only=True, frozen=True):
    """All that a face shows, but for the details of one environment (:class:`EnvironmentDetail`)."""

    schema: int
    clock: Clock
    run: RunHeader
    verdict: Verdict
    pulse: list[Pulse]
    learner: dict[str, Figure] = {}
    """Of the policy's last round: ``chose.OP``, and ``restricted.HEAD`` and ``forced.HEAD`` by masks, as shares."""
    operations: dict[str, int]
    """Commands asked for, by op."""
    steps: StepSplit
    bound: Bound
    host: HostVitals | None = None
    levels: dict[str, int] = {}
    """Environments by level; a level that none has is missing."""
    devices: list[DeviceGroup]
    environments: dict[str, EnvironmentRow]
    """By env id; the order to show them in is in ``devices``. Over the web only those that are looked at."""
    stages: dict[str, int]
    """Slots of all environments by stage."""
    census: list[Census]
    feed: list[FeedItem]
    alarms: list[FeedItem]
    governor: list[FeedItem]
    leaderboard: list[Leader]
    drops: list[Drop]
    missing: int
    """Events that the sequence numbers say are missing."""
    unplaced: int
    damage: list[Damage]
    network: Network | None = None
    """Of the environment that the run is shown by."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of snapshot and drawer, from which the page's types are generated."""
    (_, components) = msgspec.json.schema_components((Snapshot, EnvironmentDetail), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Overwatch",
        "type": "object",
        "properties": {
            "snapshot": {"$ref": "#/$defs/Snapshot"},
            "environment": {"$ref": "#/$defs/EnvironmentDetail"},
        },
        "required": ["snapshot", "environment"],
        "$defs": dict(sorted(components.items())),
    }
