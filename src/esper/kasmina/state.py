"""What is known about a seed: plain data without tensors, that can be written to JSON and read back.

Every measured field is ``None`` until it was measured, and ``<field>_epoch`` says when that was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, TypeVar

from esper.kasmina.blending import check_ramp, ramp
from esper.leyline import Blend, DataError, Paired, SeedStage


class Incubation(StrEnum):
    """How a seed learns before it may change the host's output."""

    PROBE = "probe"
    """In a second pass of the part behind the slot, with the seed blended in and the host held constant."""
    GRAFT = "graft"
    """Blended in from the start by a zero-initialised last layer; its input is detached for the first epochs."""
    STRAIGHT_THROUGH = "straight_through"
    """The host's output passes unchanged, the host's error reaches the seed at fixed features."""


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """How a seed will be blended in once it has passed G2."""

    blend: Blend = Blend.LINEAR
    tempo: int = 3
    """Length of the ramp, epochs."""
    alpha_target: float = 1.0
    incubation: Incubation | None = None
    """``None``: as the slot has it."""

    def __post_init__(self) -> None:
        check_ramp(self.alpha_target, self.tempo)


@dataclass(kw_only=True)
class SeedMetrics:
    """What a seed was measured to do."""

    seed_gradient_norm_ratio: float | None = None
    """Size-corrected norm of the seed's gradient over the host's, moving average."""
    seed_gradient_norm_ratio_epoch: int | None = None
    isolation_violations: int | None = None
    """Passes in which gradient reached the host through the isolated seed."""
    isolation_violations_epoch: int | None = None
    removal_cost: Paired | None = None
    """Metric lost when alpha is set to 0, in the metric's unit; positive when the seed helps."""
    removal_cost_epoch: int | None = None
    removal_cost_loss: Paired | None = None
    """Loss added when alpha is set to 0; positive when the seed helps."""
    removal_cost_loss_epoch: int | None = None
    probe_gain: Paired | None = None
    """Metric gained when the alpha of a seed in TRAINING is set to 1."""
    probe_gain_epoch: int | None = None
    probe_gain_loss: Paired | None = None
    """Loss removed when the alpha of a seed in TRAINING is set to 1."""
    probe_gain_loss_epoch: int | None = None
    metric_at_germination: float | None = None
    metric_at_germination_epoch: int | None = None
    loss: float | None = None
    """Validation loss of the host with the seed as it is."""
    loss_epoch: int | None = None


@dataclass(kw_only=True)
class SeedTelemetry:
    """Health of a seed's own gradients; all of it is measured in the same epoch."""

    gradient_health: float | None = None
    """1 when no tensor's gradient vanishes or explodes, in [0, 1]."""
    has_vanishing: bool | None = None
    has_exploding: bool | None = None
    gradient_health_epoch: int | None = None


@dataclass
class SeedState:
    """Lifecycle of one seed. ``SeedSlot`` moves it; everyone else reads it."""

    seed_id: str
    blueprint_id: str
    slot_id: str = ""
    stage: SeedStage = SeedStage.DORMANT
    incubation: Incubation = Incubation.PROBE
    detach_epochs: int = 3
    """Epochs of TRAINING in which a grafted seed sees the host without a path back to it."""
    host_learns: bool = True
    """Whether there is a gradient of the host to compare the seed's with."""
    parameters: int | None = None
    """Parameters of the seed module; ``None`` until one was built."""
    alpha: float = 0.0
    """The alpha that the forward pass uses."""
    alpha_from: float = 0.0
    """Where the present ramp began."""
    alpha_target: float = 1.0
    blend: Blend = Blend.LINEAR
    tempo: int = 3
    ramp_step: int = 0
    """Step of the ramp that the present epoch uses, 1 to ``tempo``; 0 before the first ramp."""
    epochs_in_stage: int = 0
    stage_epoch: int | None = None
    """Epoch in which the stage was entered."""
    age_epochs: int = 0
    """Epochs since germination."""
    blocked_by: tuple[str, ...] = ()
    """Failed checks of the last gate evaluation."""
    history: list[tuple[int | None, str]] = field(default_factory=list)
    """Every stage entered, with its epoch, by name."""
    metrics: SeedMetrics = field(default_factory=SeedMetrics)
    telemetry: SeedTelemetry = field(default_factory=SeedTelemetry)

    def enter(self, stage: SeedStage, epoch: int | None) -> None:
        """Move to ``stage``; whether the move is legal is the slot's business."""
        self.stage = stage
        self.epochs_in_stage = 0
        self.stage_epoch = epoch
        self.history.append((epoch, stage.name))

    def begin_ramp(self, target: float, tempo: int, blend: Blend) -> None:
        """Start towards ``target``. The coming epoch uses its first step already, so a ramp of one epoch is one."""
        check_ramp(target, tempo)
        self.alpha_from, self.alpha_target, self.tempo, self.blend = self.alpha, target, tempo, blend
        self.ramp_step = 0
        self.step_ramp()

    def step_ramp(self) -> None:
        """Take the next step of the ramp; the last one lands on the target exactly."""
        self.ramp_step = min(self.ramp_step + 1, self.tempo)
        self.alpha = ramp(self.alpha_from, self.alpha_target, self.blend, self.ramp_step, self.tempo)

    @property
    def isolated(self) -> bool:
        """Whether the seed sees the host's feature without a path back to the host."""
        return self.stage is SeedStage.TRAINING and self.epochs_in_stage < self.isolated_epochs

    @property
    def isolated_epochs(self) -> float:
        """Epochs of TRAINING in isolation; only a graft ever leaves it before it is blended, or has none."""
        return self.detach_epochs if self.incubation is Incubation.GRAFT else math.inf

    @property
    def ramp_complete(self) -> bool:
        """Whether alpha rests on its target."""
        return self.ramp_step >= self.tempo

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, enums by name, non-finite floats as on the wire (``"NaN"``)."""
        plain: dict[str, Any] = _encode(asdict(self))
        return plain | {"stage": self.stage.name, "incubation": self.incubation.value, "blend": self.blend.value}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SeedState:
        """Undo of :meth:`to_dict`. Raises ``DataError`` when a key is missing, unknown or of the wrong kind."""
        # what 0.1.0 wrote lacks the key: it refused hosts that do not learn
        state = _decode(cls, {"host_learns": True, **plain})
        try:
            state.stage = SeedStage[plain["stage"]]
            state.incubation = Incubation(state.incubation)
            state.blend = Blend(state.blend)
            state.blocked_by = tuple(state.blocked_by)
            state.history = [(epoch, name) for epoch, name in state.history]
            state.metrics = _decode_measured(SeedMetrics, plain["metrics"])
            for name in _PAIRED:
                value = getattr(state.metrics, name)
                # what 0.1.0 wrote lacks the key: it read everything
                setattr(
                    state.metrics, name, None if value is None else _decode_measured(Paired, {"read": None, **value})
                )
            state.telemetry = _decode_measured(SeedTelemetry, plain["telemetry"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"seed state {plain.get('seed_id')!r} cannot be read: {error}") from error
        return state


_PAIRED: Final = ("removal_cost", "removal_cost_loss", "probe_gain", "probe_gain_loss")
_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

D = TypeVar("D")


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(kind: type[D], plain: Mapping[str, Any]) -> D:
    """Build the dataclass ``kind``, which must get all its fields and no others."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(plain, Mapping) or set(plain) != names:
        odd = sorted(set(plain) ^ names) if isinstance(plain, Mapping) else plain
        raise DataError(f"{kind.__name__}: missing or unknown {odd}")
    return kind(**plain)


def _decode_measured(kind: type[D], plain: Mapping[str, Any]) -> D:
    """:func:`_decode` for a dataclass without text fields, in which a string can only be a non-finite number."""
    return _decode(kind, {key: _NON_FINITE[v] if isinstance(v, str) else v for key, v in plain.items()})
