"""What users do with a model of their own: hosts, number formats, losses, optimizers, schedules, frozen parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from keeping_hosts import GPT, TOKENS, CausalConvolutions, Recurrent, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

EPOCHS = 4
Pairs = list[tuple[Any, Tensor]]


class Dense(nn.Module):
    """A BatchNorm in front of the site, a BatchNorm and a dropout behind it."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.back = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.back(self.front(x))
        return output


class Images(nn.Module):
    """Convolutions over ``[N, 1, 6, 6]``."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))

    def forward(self, *, pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.back(self.front(pixels))}


@dataclass(frozen=True)
class Host:
    """A model, where a seed sits in it, what grows there, and how its user calls it."""

    build: Callable[[], nn.Module]
    site: str
    blueprint: str
    forward: Callable[[nn.Module, Any], Any]
    """To logits with the classes on axis 1, or to one number per example."""
    front: tuple[str, ...]
    """What comes before the site, and may be frozen."""
    inputs: Callable[[int, int], Tensor]
    """``(examples, seed)``"""
    labels: tuple[int, ...] = ()
    """Shape of an example's labels; ``None`` classes is regression."""
    classes: int | None = 4


def normal(*shape: int) -> Callable[[int, int], Tensor]:
    return lambda n, seed: torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def words(n: int, seed: int) -> Tensor:
    return tokens(n, 6, seed)


def plain(model: nn.Module, x: Any) -> Any:
    return model(x)


def squeezed(model: nn.Module, x: Any) -> Any:
    return model(x).squeeze(1)


def named(model: nn.Module, x: Any) -> Any:
    """Inputs come by keyword, from a tensor or a mapping; the answer is one of several."""
    return model(**(x if isinstance(x, dict) else {"pixels": x}))["logits"]


def turned(model: nn.Module, x: Any) -> Any:
    return model(x).mT


def first(model: nn.Module, x: Any) -> Any:
    return model(x)[0].mT


HOSTS = {
    "MLP": Host(Dense, "front.2", "mlp", plain, ("front",), normal(6)),
    "regression": Host(partial(Dense, 1), "front.2", "pointwise", squeezed, ("front",), normal(6), classes=None),
    "convolutions": Host(Images, "front.2", "conv3", named, ("front",), normal(1, 6, 6)),
    "causal convolutions": Host(
        CausalConvolutions, "blocks.0", "pointwise", plain, ("embed", "blocks.0"), words, (6,), TOKENS
    ),
    "GPT": Host(GPT, "blocks.0", "depthwise3", turned, ("embed", "place", "blocks.0"), words, (6,), TOKENS),
    "GRU": Host(Recurrent, "cell", "mlp", first, ("embed", "cell"), words, (6,), TOKENS),
}


@dataclass(frozen=True)
class Case:
    """What a user does."""

    host: str = "MLP"
    dtype: torch.dtype = torch.float32
    autocast: str | None = None
    """Where the user has it: around the ``loss``, around ``all`` of the step, or in the ``forward``."""
    reduction: str = "mean"
    """Or ``sum``, or ``own``: by a function of the user's."""
    ignored: bool = False
    weighted: bool = False
    smoothing: float = 0.0
    second: bool = False
    """Whether another loss is added in the same backward pass."""
    micro: int = 1
    """Batches to a step of the optimizer."""
    scale: float | None = None
    clip: float | None = None
    optimizer: str = "SGD"
    schedule: str | None = None
    frozen: str | None = None
    """``front`` or ``all``."""
    groups: int = 1
    """Parameter groups of the optimizer."""
    alpha: float = 1.0
    tempo: int = 1
    born: int = 1
    """Epochs before the seed germinates."""
    taught_at_once: bool = False
    """Whether ``after_backward`` comes once for all batches of a step."""
    size: int = 8
    seed: int = 0

    @property
    def kind(self) -> Host:
        return HOSTS[self.host]

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = self.kind.build().to(self.dtype)
        for name in self.kind.front if self.frozen == "front" else ("",) if self.frozen == "all" else ():
            model.get_submodule(name).requires_grad_(False)
        return model

    def modes(self, model: nn.Module) -> None:
        """As the user sets them before each epoch."""
        model.train()
        if self.frozen == "front":
            for name in self.kind.front:
                model.get_submodule(name).eval()

    def forward(self, model: nn.Module, x: Any) -> Any:
        with self.cast("forward"):
            return self.kind.forward(model, x)

    def cast(self, where: str) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast == where else nullcontext()

    def criterion(self) -> Callable[[Any, Tensor], Tensor]:
        if self.kind.classes is None:
            return huber if self.reduction == "own" else nn.MSELoss(reduction=self.reduction)
        if self.reduction == "own":
            return flat
        weighted = (
            self.weighted and self.autocast != "forward"
        )  # whose logits are narrower than the weights: torch refuses
        weight = torch.linspace(0.5, 3.0, self.kind.classes, dtype=self.dtype) if weighted else None
        return nn.CrossEntropyLoss(weight, reduction=self.reduction, label_smoothing=self.smoothing)

    def batches(self, seed: int, sizes: tuple[int, ...]) -> Pairs:
        found = []
        for i, n in enumerate(sizes):
            x, chance = self.kind.inputs(n, seed + i), torch.Generator().manual_seed(1000 + seed + i)
            if self.kind.classes is None:
                y = x.square().mean(1).to(self.dtype)
            elif self.kind.labels:
                y = (3 * x + x.roll(1, 1)) % self.kind.classes
            else:
                y = x.flatten(1)[:, :4].argmax(1)
            if self.ignored and self.kind.classes is not None:
                hidden = torch.rand(y.shape, generator=chance) < 0.2 + 0.5 * (i % 2)
                hidden.view(-1)[:1] = False
                y = y.masked_fill(hidden, -100)
            found.append((x.to(self.dtype) if x.is_floating_point() else x, y))
        return found

    @property
    def percent(self) -> bool:
        """Whether the metric is an accuracy, and not the loss."""
        return self.kind.classes is not None

    @property
    def train(self) -> Pairs:
        """The last batch is smaller, and no whole number of steps."""
        pairs = self.batches(10, (self.size,) * 4 + (self.size // 2,))
        return [({"pixels": x}, y) for x, y in pairs] if self.host == "convolutions" else pairs

    @property
    def validation(self) -> Pairs:
        return self.batches(50, (self.size, self.size, 3))

    def optimizer_of(self, model: nn.Module) -> Optimizer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        front = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith(self.kind.front)]
        groups: list[dict[str, Any]] = [{"params": parameters}]
        if self.groups == 2 and front:
            inside = set(front)
            groups = [{"params": front}, {"params": [p for p in parameters if p not in inside], "lr": 0.004}]
        if self.optimizer == "AdamW":
            # of a bias in front of a BatchNorm the gradient is rounding alone, which a small eps would make a step of
            return AdamW(groups, lr=0.002, weight_decay=0.05, eps=1e-3)
        return SGD(groups, lr=0.02 if self.reduction != "sum" else 0.0005, momentum=0.8, weight_decay=0.01)

    def scheduler_of(self, optimizer: Optimizer) -> Any:
        steps = EPOCHS * -(-5 // self.micro)
        if self.schedule == "warm-up":
            return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
        if self.schedule == "one cycle":
            rates = [group["lr"] for group in optimizer.param_groups]
            return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps + 1)
        return lr_scheduler.StepLR(optimizer, 3, 0.5) if self.schedule == "steps" else None


def huber(output: Tensor, targets: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, targets)


def flat(output: Tensor, targets: Tensor) -> Tensor:
    """A cross-entropy that nobody can look into."""
    return F.cross_entropy(output.movedim(1, -1).flatten(0, -2), targets.flatten())


def penalty(output: Tensor, targets: Tensor) -> Tensor:
    return 0.1 * output.float().square().mean()
