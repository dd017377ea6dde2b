"""The seams between the parts: what an engine, a policy and a sink must do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from esper.leyline.actions import ActionOutcome, Decision, FactoredAction
from esper.leyline.telemetry import TelemetryEvent
from esper.leyline.views import EnvView, Paired, SlotFacts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Sink = Callable[[TelemetryEvent], None]
"""A sink takes an event. It may have ``flush()`` and ``close()``; the hub calls them when they are there."""

AlphaConfig = Mapping[str, float]
"""slot -> alpha to use in this evaluation only; slots that are not named keep their own."""


@dataclass(frozen=True, slots=True)
class EnvSpec:
    """What a fresh env starts from. Envs with the same ``seed`` start from the same weights and see the same order."""

    env_id: int
    episode: int
    seed: int
    max_epochs: int
    arm: str = "grown"
    policy: str = ""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """One env's epoch of training. Seconds are this env's own (``None`` where envs were trained as one stack)."""

    loss: float
    examples: int
    learning_rate: float
    host_gradient_norm: float | None
    weights_finite: bool
    """Whether every parameter and buffer was finite after the last step."""
    seconds: float | None
    input_wait_seconds: float | None
    stack_seconds: float | None = None
    """Of the whole stack, where envs were trained as one..."""
    stacked: int = 1
    """...of so many."""

    @property
    def share_seconds(self) -> float | None:
        """This env's own seconds, or an even share of the stack's."""
        return self.seconds if self.stack_seconds is None else self.stack_seconds / self.stacked


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Envs times configurations, each array ``[envs, configs]``; an env with fewer configurations is padded with NaN.

    The first configuration's figures are of all ``examples``. ``metric_se`` and ``loss_se`` are standard errors of the
    paired difference to them, over ``paired`` examples (0 in the first column); where those are fewer, the other
    figures are the first one's plus that difference. ``read`` is the share of what there was to read, where reading
    could have stopped before its end, else NaN. ``passes`` is the work done, in whole validation passes, per env.
    """

    metric: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    metric_se: npt.NDArray[np.float64]
    loss_se: npt.NDArray[np.float64]
    examples: int
    paired: npt.NDArray[np.int64]
    read: npt.NDArray[np.float64]
    passes: npt.NDArray[np.float64]
    shared_prefix: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EnvCost:
    """What an env's network costs now, and what was spent on the env so far."""

    host_parameters: int
    total_parameters: int
    inference_macs: int
    """Multiply-accumulates of one forward pass of one example."""
    learning_rate: float | None
    spent: Mapping[str, int]
    """Multiply-accumulates, by the keys of the ``COMPUTE_SPENT`` payload that end in ``_macs``."""
    seed_macs: Mapping[str, int] = field(default_factory=dict)
    """Of ``inference_macs`` those of each live seed, by seed id."""


@dataclass(frozen=True, slots=True)
class ModelExport:
    """A network written to disk. The largest difference is that of its outputs to the growing one's."""

    path: str
    parameters: int
    """Of what was written, in which a folded seed has none."""
    max_abs_difference: float
    formats: tuple[str, ...]
    trained_parameters: int
    """Of the growing network, host and seeds."""
    folded: tuple[str, ...] = ()
    """Ids of seeds that became part of a weight of the host."""
    unfolded: Mapping[str, str] = field(default_factory=dict)
    """Seed id -> why a seed beside a module is a module of its own."""

    def payload(self) -> dict[str, Any]:
        """Of ``MODEL_EXPORTED``."""
        lists = {"formats": list(self.formats), "folded": list(self.folded), "unfolded": dict(self.unfolded)}
        return {each.name: getattr(self, each.name) for each in fields(self)} | lists


@dataclass(frozen=True, slots=True)
class EpochMeasurement:
    """Validation of one env after an epoch, and the facts about its slots. ``None`` was not measured."""

    metric: float | None
    loss: float | None
    slots: Mapping[str, SlotFacts]


Settled = Callable[[int, int, Paired, Paired], bool]
"""``(env, number of the configuration, metric, loss) -> whether it need be read no further``. Metric and loss are
differences to the first configuration so far. Asked at a few places, evenly spread over the split."""


@runtime_checkable
class HostEngine(Protocol):
    """Drives N growing hosts (*envs*). Callers never touch an env's module.

    A second implementation that trains envs as one stack can stand behind the same seam; the conformance suite in
    ``tests/tolaria/engine_conformance.py`` says what both must do.
    """

    def reset(self, envs: Sequence[EnvSpec]) -> None:
        """Build a fresh host for each spec; env ``i`` of every later call is ``rows[i]``."""

    def train_epoch(self, envs: Sequence[int]) -> list[TrainResult]:
        """Train each env for one epoch."""

    def evaluate(
        self,
        envs: Sequence[int],
        configs: Sequence[Sequence[AlphaConfig]],
        split: str = "validation",
        settled: Settled | None = None,
    ) -> EvalResult:
        """Evaluate each env under its own list of alpha configurations, without a trace in the env.

        The first configuration is read on the whole split, the others on no more of it than they need.
        """

    def apply(
        self, envs: Sequence[int], actions: Sequence[FactoredAction], reasons: Sequence[str] | None = None
    ) -> list[ActionOutcome]:
        """Apply one action per env; an illegal one changes nothing and says why. ``reasons`` go into the events."""

    def audition(self, env: int, candidates: Sequence[tuple[str, str]]) -> None:
        """Let candidates, ``(slot, blueprint)``, learn behind the host in the coming epoch: what their places promise
        is in the view when it has settled. Raises ``UsageError`` where one cannot be."""

    def settle(self, envs: Sequence[int], epoch: int, measured: Sequence[EpochMeasurement]) -> None:
        """Record what epoch ``epoch`` measured, then let every slot tick (automatic moves, ramps, cool-down)."""

    def views(self, envs: Sequence[int]) -> list[EnvView]:
        """Plain state of each env."""

    def costs(self, envs: Sequence[int]) -> list[EnvCost]:
        """Parameters and multiply-accumulates of each env."""

    def charge(self, env: int, purpose: str, macs: int) -> None:
        """Add to what was spent on the env; ``purpose`` is one of the ledger's."""

    def state(self, env: int) -> dict[str, Any]:
        """Everything the env needs to continue bit for bit: ``{"tensors": {name: tensor}, "plain": json-able}``."""

    def load(self, env: int, state: Mapping[str, Any]) -> None:
        """Undo of :meth:`state`, also into an env whose topology differs."""

    def rewind(self, env: int, state: Mapping[str, Any]) -> None:
        """Go back to an earlier state of the same episode; the clock, what was spent and vetoes stay as they are."""

    def quarantine(self, env: int, slot: str, epochs: int, reason: str) -> None:
        """Prune what lives in ``slot`` in the governor's name and let nothing grow there for ``epochs`` epochs."""

    def conclude(self, envs: Sequence[int], stay: Collection[str], reason: str) -> None:
        """Prune every seed that was not fossilized, but for those in the slots ``stay``: what remains is what is tested
        and exported."""

    def network(self, env: int) -> dict[str, Any]:
        """What the env's network computes now, on the host's memory; less than :meth:`state`, and of the same form."""

    def deliver(self, env: int, network: Mapping[str, Any], epoch: int) -> None:
        """Go back to what :meth:`network` gave after ``epoch``, with the seeds that took part in its forward pass.

        The clock, what was measured and what was spent stay as they are."""

    def save(self, env: int, directory: Path) -> ModelExport:
        """Write the env's current network as files that need no Esper."""

    def materialise(self, env: int) -> Any:
        """The env's current network as a plain ``torch.nn.Module``, for export."""


@runtime_checkable
class Policy(Protocol):
    """Decides what to grow, where and when."""

    name: str

    def reset(self, specs: Sequence[EnvSpec]) -> None:
        """Forget everything; one decision per spec is asked from now on."""

    def decide(self, views: Sequence[EnvView]) -> list[Decision]:
        """One legal action per view, with the reason for it."""
