"""What a policy may know: plain data about one environment and its slots. Unknown is ``None``, never a stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from esper.leyline.actions import ActionOutcome
from esper.leyline.gates import GateThresholds
from esper.leyline.mixing import SiteMixing
from esper.leyline.stages import LIVE, SeedStage

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Fact(Generic[V]):
    """A measured value with the epoch it was measured in (``None`` = of unknown age)."""

    value: V
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Paired:
    """A paired difference over ``n`` examples with its standard error."""

    value: float
    se: float
    n: int
    read: float | None = None
    """Share of what there was to read, where one looked while reading it; ``None`` was looked at when it was over."""

    def lower(self, z: float = 1.645) -> float:
        """One-sided lower confidence bound (95 % at the default ``z``)."""
        return self.value - z * self.se


@dataclass(frozen=True, slots=True)
class Promise:
    """What an empty place promises, of one kind of seed: measured, before anything grows there."""

    value: float
    """Training loss that a seed there took off, per example: by how much it fell along the seed's own steps, to first
    order, while candidates in all places learned together."""
    steps: int
    """How many steps they learned."""
    macs: int
    """The place's share of what measuring took."""
    epoch: int | None = None
    """In which it was measured."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """What counterfactual evaluation measured of one slot in this epoch; ``None`` was not measured."""

    removal_cost: Paired | None = None
    removal_cost_loss: Paired | None = None
    probe_gain: Paired | None = None
    probe_gain_loss: Paired | None = None


@dataclass(frozen=True, slots=True)
class KeptView:
    """A seed that was kept in a slot that opened again. It is part of the network for good."""

    seed_id: str
    blueprint: str
    alpha: float
    parameters: int
    removal_cost: Fact[Paired] | None = None
    """As it was when the slot opened: an older seed is not measured any more."""


@dataclass(frozen=True, slots=True)
class SlotView:
    """State of one slot. Every measured field is ``None`` until it was measured."""

    slot_id: str
    stage: SeedStage = SeedStage.DORMANT
    seed_id: str | None = None
    blueprint: str | None = None
    alpha: float = 0.0
    """The alpha that the forward pass uses."""
    alpha_target: float | None = None
    parameters: int = 0
    epochs_in_stage: int = 0
    stage_epoch: int | None = None
    """Epoch in which the stage was entered; what was measured earlier speaks of another alpha."""
    age_epochs: int = 0
    """Epochs since germination."""
    metric_at_germination: float | None = None
    gradient_ratio: Fact[float] | None = None
    host_learns: bool = True
    """Whether there is a gradient of the host for that ratio; gates do not ask for it where there is none."""
    gradient_health: Fact[float] | None = None
    removal_cost: Fact[Paired] | None = None
    """Metric lost when alpha is set to 0; positive when the seed helps."""
    removal_cost_loss: Fact[Paired] | None = None
    """Loss added when alpha is set to 0; positive when the seed helps."""
    probe_gain: Fact[Paired] | None = None
    """Metric gained when a TRAINING seed's alpha is set to 1."""
    probe_gain_loss: Fact[Paired] | None = None
    isolation_violations: int | None = None
    isolation_due: bool = False
    """Whether the gate asks for that; a graft that is never isolated has nothing to show."""
    blocked_by: tuple[str, ...] = ()
    """Failed checks of the last gate evaluation, empty when the last one passed or none was made."""
    may_mix: SiteMixing | None = None
    """What the host lets a seed of this slot mix."""
    beside: bool = False
    """Whether seeds grow beside the module rather than behind it."""
    promise: Mapping[str, Promise] = field(default_factory=dict)
    """By blueprint, what was measured in an audition."""
    kept: tuple[KeptView, ...] = ()
    """Older seeds beneath, which were kept before the slot opened again, the oldest first. All else is of the newest
    seed alone, measured with these in place."""

    @property
    def live(self) -> bool:
        """Whether the slot holds a seed module besides those of ``kept``."""
        return self.stage in LIVE

    @property
    def generation(self) -> int:
        """How many seeds the slot has kept before the one that it holds now, or is open for."""
        return len(self.kept)


@dataclass(frozen=True, slots=True)
class EnvView:
    """State of one environment (a growing host) after an epoch."""

    env_id: int
    episode: int
    epoch: int
    """Epochs completed; 0 before the first."""
    max_epochs: int
    slots: tuple[SlotView, ...]
    """In network order."""
    blueprints: tuple[str, ...]
    blueprint_parameters: dict[str, dict[str, int]]
    """slot -> blueprint -> parameters, for the pairs that can be built."""
    host_parameters: int
    metric: float | None = None
    """Validation metric in the task's unit."""
    loss: float | None = None
    """Validation loss."""
    train_loss: float | None = None
    metric_history: tuple[float, ...] = ()
    loss_history: tuple[float, ...] = ()
    higher_is_better: bool = True
    learning_parameters: int | None = None
    """Parameters of the host that are trained; few where it is frozen but for its head."""
    gates: GateThresholds = field(default_factory=GateThresholds)
    """What the gates of this env ask."""
    parameter_budget: int | None = None
    """Most parameters that all live seeds may have together."""
    max_seeds: int | None = None
    vetoed: frozenset[str] = frozenset()
    """Slots in which the governor forbids growth for now."""
    last_outcome: ActionOutcome | None = None
    pruned: dict[str, int] = field(default_factory=dict)
    """blueprint -> how often it was pruned in this episode."""
    fossilized: dict[str, int] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    """Multiply-accumulates so far, by purpose, as :meth:`esper.tolaria.ledger.Ledger.spent` names them."""
    spent_before: Mapping[str, int] = field(default_factory=dict)
    """The part of ``spent`` that was there before the first epoch, such as for judging what a previous run grew."""

    @property
    def seed_parameters(self) -> int:
        """Parameters of all live seeds, older ones that were kept among them."""
        live = sum(slot.parameters for slot in self.slots if slot.live)
        return live + sum(seed.parameters for slot in self.slots for seed in slot.kept)

    @property
    def live_seeds(self) -> int:
        """Number of live seeds, older ones that were kept among them."""
        return sum(slot.live + slot.generation for slot in self.slots)
