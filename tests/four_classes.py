"""Four classes that a narrow network cannot tell apart, and a policy that keeps one seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from esper.leyline import (
    Blend,
    Decision,
    EnvSpec,
    EnvView,
    FactoredAction,
    GateThresholds,
    Op,
    SeedStage,
)

EPOCHS = 9
SHORT = GateThresholds(min_training_epochs=0, min_holding_epochs=0)
"""For runs of few epochs."""


class KeepOne:
    """Grows one seed as soon as may be and brings it through."""

    name = "keep-one"

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        slot = view.slots[0]
        actions = {
            SeedStage.DORMANT: FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, 1.0, 1),
            SeedStage.TRAINING: FactoredAction(Op.ADVANCE, slot.slot_id),
            SeedStage.HOLDING: FactoredAction(Op.FOSSILIZE, slot.slot_id),
        }
        return [Decision(actions.get(slot.stage, FactoredAction()), "the next step")]


def products(n: int, seed: int) -> TensorDataset:
    """Which of two products is positive: four classes that a linear model cannot tell apart."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long())


def loader(n: int, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(products(n, seed), 64, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def narrow() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)
