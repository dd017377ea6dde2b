"""A user's own model with a trainer around it, and a seed that trains behind it; and the same written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from esper.leyline import EnvSpec, Metric, SeedStage
from esper.tasks.base import Split
from esper.tasks.reduction import MeanOf
from esper.tolaria.setup import Criterion, Forward, TrainerConfig, TrainingSetup, call, trainable
from esper.tolaria.trainer import Trainer

CRITERION = nn.CrossEntropyLoss()


def batch(n: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return x.to(dtype), (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()


def network(outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


class Batches:
    """Two batches, in the same order every epoch."""

    def __init__(self, data: tuple[Tensor, Tensor]) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(*(part.chunk(2) for part in self.data), strict=True)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


def trainer_of(
    host: nn.Module,
    data: tuple[Tensor, Tensor] | None = None,
    *,
    criterion: Criterion = CRITERION,
    forward: Forward = call,
    site: str = "1",
    precision: str | None = None,
) -> Trainer:
    x, y = data or batch()

    def each(output: Any, targets: Tensor) -> Tensor:
        return torch.stack([criterion(forward_slice(output, i), targets[i : i + 1]) for i in range(len(targets))])

    task: Any = SimpleNamespace(
        metric=Metric("loss", "", higher_is_better=False),
        sites={"slot": site},
        blueprints=("mlp",),
        loss_figure=MeanOf(each),
        metric_figure=MeanOf(each),
    )
    setup = TrainingSetup(
        host=host,
        optimizer=torch.optim.SGD(trainable(host), lr=0.1),
        batches=Batches((x, y)),
        splits={"validation": Split(x, y)},
        sample=x[:2],
        sample_examples=min(2, len(x)),
        criterion=criterion,
        forward=forward,
    )
    config = TrainerConfig(lr=0.1, precision=precision)
    return Trainer(EnvSpec(0, 0, 1, 9), task, lambda spec, streams: setup, config, lambda event: None)


def forward_slice(output: Any, i: int) -> Any:
    """The output for one example."""
    if isinstance(output, Tensor):
        return output[i : i + 1] if output.ndim else output
    if isinstance(output, dict):
        return type(output)(**{key: forward_slice(value, i) for key, value in output.items()})
    if isinstance(output, tuple):
        return type(output)(forward_slice(value, i) for value in output)
    return output


def plant(trainer: Trainer, stage: SeedStage = SeedStage.TRAINING, alpha: float = 0.0, blueprint: str = "mlp") -> None:
    """A seed with weights that matter, in ``stage``, without asking a gate."""
    slot = trainer.model.slots["slot"]
    torch.manual_seed(7)
    assert slot.germinate(blueprint).passed
    assert slot.state is not None
    slot.state.stage, slot.state.alpha = stage, alpha
    with torch.no_grad():
        for parameter in slot.seed_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trainer.adopt(slot.state.seed_id)
    trainer.begin_epoch(0)


def gradients(trainer: Trainer) -> tuple[list[Tensor], list[Tensor]]:
    """Of the host and of the seed, and then none."""
    found = []
    for parameters in (list(trainer.model.host_parameters()), list(trainer.model.seed_parameters("slot"))):
        found.append([torch.zeros(()) if p.grad is None else p.grad.double() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
    return found[0], found[1]


def by_hand(
    trainer: Trainer, minimised: Callable[[Callable[[Tensor], Tensor]], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The same gradients from two passes written out: of ``network()`` as it is, and with the seed on its first ReLU.

    ``minimised`` makes of a model (inputs -> output) what the user calls ``backward`` on.
    """
    host: Any = trainer.model.host
    seed: Any = trainer.model.slots["slot"].seed
    first, second, third = host[0], host[2], host[4]

    def grown(x: Tensor) -> Tensor:
        with torch.no_grad():
            h = first(x).relu()
        return nn.functional.linear(second(seed(h)).relu(), third.weight, third.bias)

    def plain(x: Tensor) -> Tensor:
        output: Tensor = third(second(first(x).relu()).relu())
        return output

    ours = torch.autograd.grad(minimised(plain), list(host.parameters()))
    theirs = torch.autograd.grad(minimised(grown), list(seed.parameters()))
    return [g.double() for g in ours], [g.double() for g in theirs]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> bool:
    """Whether two lists of gradients are equal up to ``tolerance`` of the largest entry."""
    largest = max(float(each.abs().max()) for each in expected)
    return all(float((a - b).abs().max()) <= tolerance * largest for a, b in zip(found, expected, strict=True))
