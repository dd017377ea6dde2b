"""What a policy is paid for, in the task's metric unit.

The objective of an environment is ``J = metric (up is better) - rent * log2(1 + added / host)``, of the whole
environment with all its slots; what is added is counted in parameters or in multiply-accumulates. Every mode is built
from differences ``gamma * F(after) - F(before)`` of functions of the environment's state, plus costs:

    objective    F = J                                                  return: gamma^T * (J_T - J_0)
    simplified   F = metric, and a small cost for every command         return: gamma^T * (metric_T - metric_0) - costs
    sparse       nothing until the end, then J_T - J_0
    shaped       sparse, minus compute rent in every epoch, plus a potential (Ng et al. 1999) that is 0 at the start
                 and at the end: stages of living seeds, and what they are worth together, bounded

where values of ``F`` are relative to the start. So what a seed was paid while it lived is taken back when it is pruned,
rolled back or out at the end, and no cycle of actions gains anything in the discounted return, for any gamma. A branch
that was rolled back is worth what the state it returned to is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal

from esper.leyline import EnvCost, EnvView, Metric, Op, SeedStage, UsageError


class RewardMode(StrEnum):
    """Built-in ways to pay."""

    OBJECTIVE = "objective"
    SIMPLIFIED = "simplified"
    SPARSE = "sparse"
    SHAPED = "shaped"


STAGE_POTENTIAL: Final = MappingProxyType(
    {
        SeedStage.GERMINATED: 0.1,
        SeedStage.TRAINING: 0.2,
        SeedStage.BLENDING: 0.5,
        SeedStage.HOLDING: 0.7,
        SeedStage.FOSSILIZED: 1.0,
    }
)
"""Potential of a living seed by stage, in points; other stages have none."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """What is paid. A *point* is one unit of a metric in per cent, else a hundredth of the metric at the start."""

    mode: str = RewardMode.OBJECTIVE
    rent: float = 0.5
    """Points for every doubling of the network, 0 or more."""
    rent_on: Literal["parameters", "macs"] = "parameters"
    control: bool = False
    """Whether the static host's own progress with the same seed is subtracted: less variance, same best policy."""
    command_cost: float = 0.02
    """Mode simplified: points for every command other than WAIT."""
    compute_rent: float = 0.5
    """Mode shaped: points for carrying a doubled network through the whole episode."""
    worth_cap: float = 5.0
    """Mode shaped: most points that the living seeds' measured worth adds to the potential."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"reward {self.mode!r}; legal: {', '.join(sorted(MODES))}")
        for name in ("rent", "command_cost", "compute_rent", "worth_cap"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"{name} of the reward is {value}; it must be 0 or more")
        if self.rent_on not in ("parameters", "macs"):
            raise UsageError(f"rent_on is {self.rent_on!r}; legal: parameters, macs")


@dataclass(frozen=True, slots=True)
class RewardInputs:
    """All that a reward looks at: one environment with all its slots after an epoch."""

    metric: float
    """In the task's unit, as measured."""
    growth: float
    """What was added, relative to the host."""
    worth: float | None = None
    """Metric lost if every blended seed were off, positive when they help; ``None`` was not measured."""
    stages: tuple[SeedStage, ...] = ()

    @classmethod
    def of(
        cls, view: EnvView, metric: float, worth: float | None, cost: tuple[EnvCost, EnvCost] | None
    ) -> RewardInputs:
        """Of an env; ``cost`` is what it cost at the start and costs now, where rent is on multiply-accumulates."""
        growth = view.seed_parameters / view.host_parameters
        if cost is not None:
            growth = cost[1].inference_macs / cost[0].inference_macs - 1.0
        stages = [stage for s in view.slots for stage in (*(SeedStage.FOSSILIZED for _ in s.kept), s.stage)]
        return cls(metric, max(0.0, growth), worth, tuple(stages))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "stages": [stage.name for stage in self.stages]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RewardInputs:
        """Undo of :meth:`to_dict`."""
        return cls(**{**plain, "stages": tuple(SeedStage[name] for name in plain["stages"])})


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """One step's reward by component; ``components`` sum to ``total``. All in the metric's unit."""

    total: float
    components: dict[str, float]
    objective: float
    """J after the step."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a mode is asked to pay: one step of one environment, everything in points and relative to the start."""

    config: RewardConfig
    gamma: float
    before: RewardInputs
    after: RewardInputs
    metric: tuple[float, float]
    rent: tuple[float, float]
    potential: dict[str, tuple[float, float]]
    op: Op
    ended: bool
    max_epochs: int

    def difference(self, values: tuple[float, float]) -> float:
        """``gamma * after - before``."""
        return self.gamma * values[1] - values[0]


def _objective(change: Change) -> dict[str, float]:
    return {"metric": change.difference(change.metric), "rent": -change.difference(change.rent)}


def _simplified(change: Change) -> dict[str, float]:
    cost = change.config.command_cost if change.op is not Op.WAIT else 0.0
    return {"metric": change.difference(change.metric), "command": -cost}


def _sparse(change: Change) -> dict[str, float]:
    if not change.ended:
        return {"metric": 0.0, "rent": 0.0}
    return {"metric": change.metric[1], "rent": -change.rent[1]}


def _shaped(change: Change) -> dict[str, float]:
    carried = math.log2(1.0 + change.after.growth) * change.config.compute_rent / change.max_epochs
    shaping = {f"shaping_{name}": change.difference(values) for name, values in change.potential.items()}
    return {**_sparse(change), "compute_rent": -carried, **shaping}


Mode = Callable[[Change], dict[str, float]]

MODES: Final[dict[str, Mode]] = {
    RewardMode.OBJECTIVE: _objective,
    RewardMode.SIMPLIFIED: _simplified,
    RewardMode.SPARSE: _sparse,
    RewardMode.SHAPED: _shaped,
}
"""Name -> components of one step, in points."""


@dataclass(slots=True)
class RewardTracker:
    """What one env is paid over one episode: pay every step, until one that ended."""

    config: RewardConfig
    metric: Metric
    gamma: float
    max_epochs: int
    start: RewardInputs
    last: RewardInputs = field(init=False)
    paid: float = 0.0
    """Undiscounted return so far."""
    components: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    curve: tuple[float, ...] | None = None
    """The static host's metric before the first epoch, then after each: the control variate."""

    def __post_init__(self) -> None:
        self.last = self.start

    @property
    def point(self) -> float:
        """One point in the metric's unit."""
        if self.metric.unit == "%":
            return 1.0
        return 0.01 * abs(self.start.metric) if math.isfinite(self.start.metric) and self.start.metric else 1.0

    def objective(self, inputs: RewardInputs) -> float:
        """J of a standing, in the metric's unit (negated where lower is better)."""
        return self._up(inputs.metric) - self._rent(inputs)

    @property
    def gain(self) -> float:
        """J now minus J at the start: what every mode is measured against."""
        return self.objective(self.last) - self.objective(self.start)

    def pay(self, after: RewardInputs, op: Op = Op.WAIT, *, ended: bool = False) -> RewardBreakdown:
        """The reward of a step that led to ``after``; ``ended`` on the episode's last."""
        before, base = self.last, self._up(self.start.metric)
        change = Change(
            config=self.config,
            gamma=self.gamma,
            before=before,
            after=after,
            metric=(
                (self._up(before.metric) - base) / self.point,
                (self._up(after.metric) - base) / self.point,
            ),
            rent=(
                (self._rent(before) - self._rent(self.start)) / self.point,
                (self._rent(after) - self._rent(self.start)) / self.point,
            ),
            potential=self._potentials(before, after, ended),
            op=op,
            ended=ended,
            max_epochs=self.max_epochs,
        )
        components = {name: value * self.point for name, value in MODES[self.config.mode](change).items()}
        if self.curve is not None:
            components["control"] = self._control(ended)
        self.steps += 1
        self.last = after
        total = math.fsum(components.values())
        self.paid += total
        for name, value in components.items():
            self.components[name] = self.components.get(name, 0.0) + value
        return RewardBreakdown(total, components, self.objective(after))

    def to_dict(self) -> dict[str, Any]:
        """What changes over the episode, JSON-able."""
        return {
            "start": self.start.to_dict(),
            "last": self.last.to_dict(),
            "paid": self.paid,
            "components": dict(self.components),
            "steps": self.steps,
            "curve": None if self.curve is None else list(self.curve),
        }

    def load(self, plain: Mapping[str, Any]) -> None:
        """Undo of :meth:`to_dict`."""
        self.start, self.last = RewardInputs.from_dict(plain["start"]), RewardInputs.from_dict(plain["last"])
        self.paid, self.steps = plain["paid"], plain["steps"]
        self.components = dict(plain["components"])
        self.curve = None if plain["curve"] is None else tuple(plain["curve"])

    def _up(self, metric: float) -> float:
        return metric if self.metric.higher_is_better else -metric

    def _rent(self, inputs: RewardInputs) -> float:
        return self.config.rent * self.point * math.log2(1.0 + inputs.growth)

    def _potentials(self, before: RewardInputs, after: RewardInputs, ended: bool) -> dict[str, tuple[float, float]]:
        start = self.steps == 0
        return {
            name: (0.0 if start else of(before), 0.0 if ended else of(after))
            for name, of in (("stage", _stage_potential), ("worth", self._worth))
        }

    def _worth(self, inputs: RewardInputs) -> float:
        """What the living seeds are worth together, in points: an unmeasured or undefined worth earns no credit."""
        if inputs.worth is None or not math.isfinite(inputs.worth):
            return 0.0
        return min(self.config.worth_cap, max(0.0, inputs.worth / self.point))

    def _control(self, ended: bool) -> float:
        """Minus what the static host was paid for its progress; it depends on seed and time only, so that no action
        can change it.
        """
        assert self.curve is not None
        first = self._up(self.curve[0])
        now, then = (self._up(self.curve[i]) - first for i in (self.steps, self.steps + 1))
        if self.config.mode in (RewardMode.SPARSE, RewardMode.SHAPED):
            return -then if ended else 0.0
        return now - self.gamma * then


def _stage_potential(inputs: RewardInputs) -> float:
    return sum(STAGE_POTENTIAL.get(stage, 0.0) for stage in inputs.stages)
