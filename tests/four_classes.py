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
from own_loop import products

EPOCHS = 9
SHORT = GateThresholds(min_training_epochs=0, min_holding_epochs=0)
"""For runs of few epochs."""


class KeepOne:
    """Grows one seed as soon as may be and brings it through."""

    name = "keep-one"

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def actions(self, view: EnvView, slot: str) -> dict[SeedStage, FactoredAction]:
        """By stage of the seed; in others it waits."""
        return {
            SeedStage.DORMANT: FactoredAction(Op.GERMINATE, slot, "mlp", Blend.LINEAR, 1.0, 1),
            SeedStage.TRAINING: FactoredAction(Op.ADVANCE, slot),
            SeedStage.HOLDING: FactoredAction(Op.FOSSILIZE, slot),
        }

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        slot = view.slots[0]
        actions = self.actions(view, slot.slot_id)
        return [Decision(actions.get(slot.stage, FactoredAction()), "the next step")]


def loader(n: int, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(
        TensorDataset(*products(n, seed)), 64, shuffle=shuffle, generator=torch.Generator().manual_seed(1)
    )


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)
