"""A loop of a user's own over a small model, for tests of ``Grower``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.leyline import EnvView, GateThresholds
from esper.library import Budget, Grower, OwnChoices
from esper.tolaria.executor import StepReport

LOSS = nn.CrossEntropyLoss()


def products(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which of two products is positive: four classes that a linear model cannot tell apart."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()


TRAIN = [products(64, seed) for seed in range(4)]
VALIDATION = [products(256, 9)]


def narrow() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def steps(
    grower: Grower,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[Tensor]] = TRAIN,
    each: Callable[[], Any] | None = None,
) -> None:
    """Train on each batch of inputs and targets, and then do what is asked for after each."""
    for inputs, targets in batches:
        optimizer.zero_grad()
        torch.autograd.backward(grower.loss(inputs, targets))
        grower.after_backward()
        optimizer.step()
        if each is not None:
            each()


def epoch(grower: Grower, optimizer: torch.optim.Optimizer, batches: Iterable[Sequence[Tensor]] = TRAIN) -> StepReport:
    """Train on each batch, and end the epoch."""
    steps(grower, optimizer, batches)
    return grower.after_epoch()


class Loop:
    """A user's loop over a model; ``grower`` is open in it."""

    def __init__(
        self,
        where: Path,
        policy: Any,
        epochs: int = 14,
        model: nn.Module | None = None,
        gates: GateThresholds | None = None,
    ) -> None:
        self.model = model or narrow()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-2)
        budget = Budget(epochs=epochs, parameters=5000, gates=gates or GateThresholds())
        choices = OwnChoices(LOSS, at=["1"], budget=budget)
        self.grower = Grower(
            self.model, self.optimizer, val=VALIDATION, choices=choices, policy=policy, run_dir=where / "run"
        )

    def batch(self, inputs: Tensor, targets: Tensor) -> None:
        steps(self.grower, self.optimizer, [(inputs, targets)])

    def epoch(self) -> EnvView:
        return epoch(self.grower, self.optimizer).view
