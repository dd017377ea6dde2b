"""Modules of seeds beside a module. They need nothing but torch, so that an exported model can carry them.

Each is given the parts that fit its module: a map of the module's input down to a few channels, over the module's own
windows, and one of those to all channels of its output.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """``scale * up(down(x))``, the addition to a layer's output that an addition of low rank to its weight makes.

    Hu et al., "LoRA: low-rank adaptation of large language models" (2022): ``down`` as a layer is initialised, ``up``
    zero; for an embedding the table zero and ``up`` normal. Kalajdzievski, "A rank stabilization scaling factor for
    fine-tuning with LoRA" (2023): the scale falls with the square root of the rank, so that gradients do not collapse
    in large ones.
    """

    def __init__(self, down: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """``x``: input of the module beside it; returns the shape of its output."""
        out: Tensor = self.up(self.down(x)) * self.scale
        return out

    def delta(self) -> Tensor:
        """What is added to the weight of the module beside it, in the shape that torch's layers keep it."""
        weights = dict(self.named_parameters())
        down, up = weights["down.weight"], weights["up.weight"]
        if isinstance(self.down, nn.Embedding):
            return (down @ up.T) * self.scale
        return (up.flatten(1) @ down.flatten(1)).reshape(-1, *down.shape[1:]) * self.scale


class ParallelAdapter(nn.Module):
    """``scale * up(relu(down(x)))``: a bottleneck beside a module, which adds to its output.

    He, Zhou et al., "Towards a unified view of parameter-efficient transfer learning" (2022), the scaled parallel
    adapter, with ``up`` zero at birth.
    """

    def __init__(self, down: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """``x``: input of the module beside it; returns the shape of its output."""
        out: Tensor = self.up(F.relu(self.down(x))) * self.scale
        return out
