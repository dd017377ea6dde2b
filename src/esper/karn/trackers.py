"""One adapter for each experiment tracker: TensorBoard, Weights & Biases, MLflow.

Each is made with the run's id and settings and where to put it, and is a :class:`~esper.karn.mirror.Tracker`.
Without its package it raises :class:`~esper.leyline.MissingExtraError`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from esper.karn.mirror import Point
from esper.leyline import MissingExtraError, UsageError

PROJECT: Final = "esper"
"""Project of W&B and experiment of MLflow where none is named."""
MLFLOW_BATCH: Final = 1000
"""Most metrics that ``MlflowClient.log_batch`` takes at a time."""


class TensorBoard:
    """Event files below a folder, one TensorBoard run per group, so that environments lie over each other in a chart.

    Raises ``UsageError`` when something is in the folder already: TensorBoard would show the points twice.
    """

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any], into: str | None) -> None:
        self._module = _package("tensorboardX", "TensorBoard", "tensorboard")
        self.folder = run / "tensorboard" if into is None else Path(into)
        if into is None and self.folder.is_symlink():
            raise UsageError(f"{self.folder}: a link; nothing is written through one. Name the folder with --into")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UsageError(f"{self.folder}: something is there already; delete it or name another folder with --into")
        self.place = str(self.folder)
        self._writers: dict[str, Any] = {}
        text = "\n".join(f"    {name}: {value}" for name, value in sorted(settings.items()))
        self._writer("run").add_text("settings", f"    run: {run_id}\n{text}")

    def write(self, points: list[Point]) -> None:
        """Add scalars."""
        for group, name, step, value, at in points:
            self._writer(group).add_scalar(name, value, step, walltime=at)

    def close(self, status: str | None) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, group: str) -> Any:
        writer = self._writers.get(group)
        if writer is None:
            writer = self._writers[group] = self._module.SummaryWriter(logdir=str(self.folder / group))
        return writer


class Wandb:
    """A run of Weights & Biases with the same name and id; ``into`` is its project. ``WANDB_MODE=offline`` is obeyed.

    Each group has a step of its own (``env0/step``), since one run of W&B has a single clock.
    """

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any], into: str | None) -> None:
        module = _package("wandb", "Weights & Biases", "wandb")
        try:
            self._run = module.init(
                project=into or PROJECT, id=run_id, name=run_id, config=dict(settings), dir=str(run)
            )
        except module.Error as problem:
            raise UsageError(f"wandb, project {into or PROJECT}: {_first_line(problem)}") from None
        self.place = str(getattr(self._run, "url", None) or getattr(self._run, "dir", None) or run)
        self._groups: set[str] = set()

    def write(self, points: list[Point]) -> None:
        """Log the points of one group and step together."""
        rows: dict[tuple[str, int], dict[str, float]] = {}
        for group, name, step, value, _ in points:
            rows.setdefault((group, step), {})[f"{group}/{name}"] = value
        for (group, step), row in rows.items():
            if group not in self._groups:
                self._groups.add(group)
                self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
            self._run.log({f"{group}/step": step, **row})

    def close(self, status: str | None) -> None:
        """Finish the run; anything but a completed one has exit code 1."""
        self._run.finish(exit_code=0 if status == "completed" else 1)


class Mlflow:
    """A run in MLflow's experiment ``esper``; ``into`` is the tracking URI, else what MLflow itself is set to."""

    _STATUS: Final = MappingProxyType({"completed": "FINISHED", "failed": "FAILED"})

    def __init__(self, run: Path, run_id: str, settings: Mapping[str, Any], into: str | None) -> None:
        module = _package("mlflow", "MLflow", "mlflow")
        entities = importlib.import_module("mlflow.entities")
        self._metric: Callable[[str, float, int, int], Any] = entities.Metric
        try:
            self._client = module.MlflowClient(tracking_uri=into)
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = self._client.create_experiment(PROJECT) if found is None else found.experiment_id
            self._id = self._client.create_run(experiment, run_name=run_id).info.run_id
        except module.MlflowException as problem:
            raise UsageError(f"mlflow, tracking URI {into or 'of its own'}: {_first_line(problem)}") from None
        self.place = f"experiment {PROJECT}, run {self._id}"
        params = [entities.Param(name, str(value)[:500]) for name, value in sorted(settings.items())]
        for at in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[at : at + 100])

    def write(self, points: list[Point]) -> None:
        """Log metrics, as many at a time as MLflow takes."""
        metrics = [
            self._metric(f"{group}/{name}", value, round((time.time() if at is None else at) * 1000), step)
            for group, name, step, value, at in points
        ]
        for first in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(self._id, metrics=metrics[first : first + MLFLOW_BATCH])

    def close(self, status: str | None) -> None:
        """Set the run's status; one without an end event is ``KILLED``, as MLflow calls it."""
        self._client.set_terminated(self._id, status=self._STATUS.get(status or "", "KILLED"))


TRACKERS: Final[Mapping[str, type[TensorBoard] | type[Wandb] | type[Mlflow]]] = MappingProxyType(
    {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
)
"""Name, which is the extra's too -> adapter."""


def _package(module: str, feature: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"writing to {feature}", extra) from None


def _first_line(problem: Exception) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
