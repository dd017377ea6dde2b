"""The deep look at an env every few epochs, as an event; an env without it pays nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.leyline import EnvSpec, EpochMeasurement, Sink, UsageError
from esper.nissa.diagnostics import DiagnosticTracker, diagnostic_event
from esper.nissa.profiles import TelemetryConfig
from esper.tolaria.trainer import Trainer


@dataclass(frozen=True, slots=True)
class DiagnosticsConfig:
    """What to look at (see :class:`TelemetryConfig`), every how many epochs."""

    look: TelemetryConfig
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"diagnostics every {self.every} epochs; 1 or more is needed")

    @classmethod
    def of(cls, profile: str | None, every: int) -> DiagnosticsConfig | None:
        """By the profile's name; no profile, no diagnostics."""
        return None if profile is None else cls(TelemetryConfig.from_profile(profile), every)


class EnvDiagnostics:
    """Watches one env's trainer; gradients are looked at in the epochs that are due, and in no other."""

    def __init__(self, spec: EnvSpec, trainer: Trainer, config: DiagnosticsConfig, emit: Sink) -> None:
        self.config = config
        self._spec, self._trainer, self._emit = spec, trainer, emit
        self._tracker = DiagnosticTracker(trainer.model, config.look, trainer.config.device)

    def begin_epoch(self, epoch: int) -> None:
        """Look at the gradients of epoch ``epoch`` if it is due."""
        self._trainer.on_backward = self._tracker.on_backward if epoch % self.config.every == 0 else None

    def end_epoch(self, epoch: int, train_loss: float | None, measured: EpochMeasurement) -> None:
        """Say what epoch ``epoch`` looked like if it is due."""
        if epoch % self.config.every:
            return
        look, trainer = self.config.look, self._trainer
        scores = targets = None
        with torch.no_grad(), trainer.streams.active("diagnostic", trainer.device):
            if look.per_class or look.confusion:
                scores, targets = _classes(*trainer.outputs("validation"))
            snapshot = self._tracker.end_epoch(
                epoch,
                train_loss,
                measured.loss,
                measured.metric,
                predictions=scores,
                targets=targets,
                loss_at=self._loss if look.landscape_samples else None,
            )
        self._emit(diagnostic_event(snapshot, env_id=self._spec.env_id, episode=self._spec.episode))

    def _loss(self) -> float:
        tally = self._trainer.task.loss_figure.tally(1, 1)
        output, targets = self._trainer.outputs("validation")
        tally.add(0, output, targets, len(targets))
        return float(tally.summary().value[0])


def _classes(output: object, targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Scores and classes where the output is one row of scores per example and the targets are class numbers."""
    fits = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1
    if not fits or targets.ndim != 1 or targets.is_floating_point():
        return None, None
    assert isinstance(output, Tensor)
    return output, targets
