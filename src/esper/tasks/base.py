"""What a task is: data with three splits, a host to grow, how it is scored, and a budget.

    get_task("digits") -> TaskSpec(data, host, sites, blueprints, loss, score, metric, budget)

Loss and score are per example, so that paired differences between two configurations have a standard error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from esper.kasmina.sites import site_of
from esper.leyline import DataError, Metric, UsageError, unknown
from esper.tasks.reduction import MeanOf, SplitFigure
from esper.tasks.tree import require_finite

PerExample = Callable[[Any, Any], Tensor]
"""``(output of the host, targets) -> [N]``, one value per example."""

Augment = Callable[[Tensor, Generator], Tensor]
"""``(inputs [N, ...], generator) -> inputs [N, ...]``: draws only from the generator, changes a batch at once."""

Batch = tuple[Any, Any]
"""Inputs and targets, each a tree of tensors; of the built-in tasks ``inputs [B, ...], targets [B, ...]``."""

CountedBatch = tuple[Any, Any, int]
"""Inputs, targets, and how many examples they count as."""

Streams = Mapping[str, Generator]
"""Named CPU generators; a source of batches draws from ``order`` and ``augment``."""


class BatchSource(Protocol):
    """What a trainer draws its batches from."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self) -> Iterator[Batch]:
        """The batches of the next epoch; every example once."""

    def state(self) -> dict[str, Tensor]:
        """Where the source's random streams stand between two epochs: name -> uint8 tensor."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Undo of :meth:`state`: the next epoch is the one that followed it."""


class SplitSource(Protocol):
    """What a model is judged on: batches that are read again at every evaluation, never all of them at once."""

    def __len__(self) -> int:
        """Examples; batches where examples cannot be counted."""

    def within(self, most: int | None) -> int | None:
        """How many examples a batch is read with where ``most`` is the most that may be."""

    def parts(self, most: int | None) -> int:
        """Batches of one reading."""

    def reading(self, most: int | None) -> AbstractContextManager[Iterator[CountedBatch]]:
        """One reading, with at most ``most`` examples a batch; it leaves no trace in any random stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Examples along the first axis: ``inputs [N, ...]`` and ``targets [N, ...]``.

    Raises ``DataError`` when there are none or the lengths differ.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for part in ("inputs", "targets"):
            value = getattr(self, part)
            if not isinstance(value, Tensor):
                raise DataError(f"{part} are a {type(value).__name__}; a torch.Tensor is needed")
            if value.ndim == 0 or len(value) == 0:
                raise DataError(f"{part} of shape {tuple(value.shape)} hold no example; the first axis counts examples")
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{len(self.inputs):,} inputs but {len(self.targets):,} targets; one target per input")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor) -> Split:
        """The examples at ``index`` (int64 ``[M]``), in that order."""
        return Split(self.inputs.index_select(0, index), self.targets.index_select(0, index))

    def to(self, device: torch.device | str) -> Split:
        """The same examples on ``device``; no copy when they are there already."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def within(self, most: int | None) -> int | None:
        """A sixteenth of all, so that reading can stop before the end, but for small batches that would be slow."""
        few = max(32, -(-len(self) // 16))
        return few if most is None else min(most, few)

    def parts(self, most: int | None) -> int:
        """See :class:`SplitSource`."""
        return 1 if most is None else -(-len(self) // most)

    @contextmanager
    def reading(self, most: int | None) -> Iterator[Iterator[CountedBatch]]:
        """See :class:`SplitSource`; batches are views."""
        pieces = zip(*(torch.split(part, most or len(self)) for part in (self.inputs, self.targets)), strict=True)
        yield ((inputs, targets, len(targets)) for inputs, targets in pieces)


def digest_of(*splits: Split) -> str:
    """Sha256 over type, shape and bytes of every tensor, in order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for split in splits:
        for values in (split.inputs, split.targets):
            digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Training, validation and test split. Gates and rewards see validation; test is touched once, at the end.

    Raises ``DataError`` when a split holds NaN or infinity, or differs from training in the shape or type of an
    example.
    """

    train: Split
    validation: Split
    test: Split
    digest: str
    """Sha256 that pins the examples of all three splits."""
    source: str
    """Where the data come from, for people."""

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            for part in ("inputs", "targets"):
                values, model = getattr(split, part), getattr(self.train, part)
                if values.shape[1:] != model.shape[1:] or values.dtype != model.dtype:
                    raise DataError(
                        f"{name} {part} are {_kind(values)} an example, but train {part} are {_kind(model)}; "
                        "every split must hold the same kind of example"
                    )
                require_finite(f"{name} {part}", values)

    @classmethod
    def of(cls, train: Split, validation: Split, test: Split, source: str) -> Data:
        """Data with the digest of its own splits."""
        return cls(train, validation, test, digest_of(train, validation, test), source)

    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape[1:])}"


@dataclass(frozen=True, slots=True)
class TaskBudget:
    """A task's preset: how long and how fast to train, how much may grow. Raises ``UsageError`` out of range."""

    max_epochs: int
    batch_size: int
    lr: float
    """Peak learning rate of the host; AdamW."""
    seed_lr_multiplier: float = 2.0
    """A new seed's peak learning rate, relative to the host's."""
    weight_decay: float = 0.01
    max_seeds: int | None = None
    """Most seeds alive at once."""
    parameters: int | None = None
    """Most parameters of all live seeds together."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Shape of the learning rate over the epochs, see :class:`esper.tolaria.schedules.ScheduleConfig`."""
    warmup: float = 0.0
    """Epochs in which the host's rate rises."""

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "wsd"):
            raise unknown("budget schedule", self.schedule, ("cosine", "wsd"))
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or item.name == "schedule":
                continue
            may_be_zero = item.name in ("weight_decay", "warmup")
            low_ok = value >= 0 if may_be_zero else value > 0
            if not (low_ok and math.isfinite(value)):
                least = "0 or more" if may_be_zero else "above 0"
                raise UsageError(f"budget: {item.name} is {value}; it must be {least}")


@dataclass(frozen=True, slots=True, eq=False)
class TaskSpec:
    """A task: data, a host to grow on them, where seeds may sit, how it is scored, and a budget."""

    name: str
    description: str
    metric: Metric
    host: Callable[[], nn.Module]
    """Makes a fresh host; its weights come from torch's global generator, which the caller seeds."""
    sites: Mapping[str, str]
    """Slot -> path of the submodule on whose output the slot sits."""
    blueprints: tuple[str, ...]
    """Names of what may grow, or ``module:ATTRIBUTE``."""
    loss: PerExample
    """``(output, targets)`` -> the loss of each example, ``[N]``; training minimises its mean."""
    score: PerExample
    """``(output, targets)`` -> the score of each example, ``[N]``; the metric, in its unit, is their mean."""
    data: Data
    budget: TaskBudget
    augment: Augment | None = None
    """``(inputs, generator) -> inputs`` on a training batch, drawing from the generator alone."""
    feed: Callable[[int, Streams], BatchSource] | None = None
    """``(batch size, streams) -> source`` of training batches that do not fit in memory or come from a loader of the
    user's own; ``data.train`` then holds a sample of them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What :func:`esper.tasks.get_task` was given besides the name."""

    @property
    def loss_figure(self) -> SplitFigure:
        """The loss over a split."""
        return MeanOf(self.loss)

    @property
    def metric_figure(self) -> SplitFigure:
        """The metric over a split."""
        return MeanOf(self.score)


def check_task(task: TaskSpec) -> TaskSpec:
    """Build the host once and try it on two training examples; returns the task.

    Raises ``UsageError`` when there is no blueprint or site, a site's path is not in the host, or loss or score is not
    one number per example; ``DataError`` when the host cannot take the data.
    """
    if not task.sites or not task.blueprints:
        raise UsageError(f"task {task.name!r} names no {'blueprint' if task.sites else 'site'}; at least one is needed")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        host = task.host().eval()
        paths = [path for path, _ in host.named_modules() if path]
        for path in task.sites.values():
            if site_of(path).path not in paths:
                raise unknown(f"site of task {task.name!r}", path, paths)
        pair = Split(task.data.train.inputs[:2], task.data.train.targets[:2])
        try:
            output = host(pair.inputs)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"task {task.name!r}: the host cannot take inputs {_kind(pair.inputs)}: {error}") from error
        for name, measure in (("loss", task.loss), ("score", task.score)):
            values = measure(output, pair.targets)
            if tuple(values.shape) != (len(pair),):
                raise UsageError(
                    f"task {task.name!r}: {name} gives shape {tuple(values.shape)} for {len(pair)} examples; "
                    "one number per example is needed"
                )
    return task
