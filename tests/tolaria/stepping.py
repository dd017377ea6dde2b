"""Epochs of an executor's first env in which nothing is done but training."""

from __future__ import annotations

from esper.leyline import WAIT, Decision
from esper.tolaria.executor import Executor

WAITING = Decision(WAIT, "")


def losses(run: Executor, epochs: int) -> list[tuple[float, float | None]]:
    """Of training and validation, by epoch."""
    reports = [run.step([WAITING])[0] for _ in range(epochs)]
    return [(report.train.loss, report.view.loss) for report in reports]
