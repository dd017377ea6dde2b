"""What one env trains with: a fresh host, its optimizer, its batches and the splits it is judged on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.kasmina.slot import SlotConfig
from esper.leyline import EnvSpec, GateThresholds, Metric, UsageError, unknown
from esper.tasks.base import BatchSource, SplitSource, TaskSpec
from esper.tasks.pipeline import training_batches
from esper.tasks.reduction import SplitFigure
from esper.tolaria.ranks import LONE, Ranks
from esper.tolaria.rng import Streams, derive, seeded
from esper.tolaria.schedules import ScheduleConfig
from esper.tolaria.shared_batches import SharedBatches, require_rows

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""As optimizers of torch take them: parameters, or groups of them."""

OptimizerFactory = Callable[[Parameters, float, float], Optimizer]
"""``(parameters, lr, weight_decay) -> optimizer``"""

Criterion = Callable[[Any, Any], Tensor]
"""``(output, targets) -> scalar``"""

Forward = Callable[[nn.Module, Any], Any]
"""``(model, inputs) -> output``"""


def adamw(parameters: Parameters, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019); ``options`` are those of :func:`adamw_options`."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, **options)


def adamw_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """AdamW's own parameters, as they are given in a file. Raises ``UsageError`` for what it cannot take."""
    signature = inspect.signature(torch.optim.AdamW).parameters
    legal = [name for name in signature if name not in ("self", "params", "lr", "weight_decay")]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for name in options:
        if name not in legal:
            raise unknown("optimizer option", name, legal)
    try:
        adamw([nn.Parameter(torch.zeros(1))], 1e-3, 0.0, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(f"optimizer options {told}: AdamW refuses them: {error}; legal: {', '.join(legal)}") from error
    return options


def trainable(host: nn.Module) -> Parameters:
    """What an optimizer is made with: torch refuses an empty list, but no empty group, which a frozen host's is."""
    return [parameter for parameter in host.parameters() if parameter.requires_grad] or [{"params": []}]


def call(model: nn.Module, inputs: Any) -> Any:
    """The plain way to run a model: as its ``forward`` takes its inputs.

    A mapping goes to keywords, where they are ``forward``'s; a tuple or list goes to as many arguments, where
    ``forward`` does not take it as one. Everything else, and what fits neither, is the one argument.
    """
    if isinstance(inputs, Mapping) and _takes(model, (), inputs):
        return model(**inputs)
    if isinstance(inputs, tuple | list) and not _takes(model, (inputs,), {}) and _takes(model, inputs, {}):
        return model(*inputs)
    return model(inputs)


def not_taken(model: nn.Module, inputs: Any) -> list[str]:
    """Keys of a mapping that are no keywords of the model, for which :func:`call` gives it the mapping as it is."""
    if not isinstance(inputs, Mapping) or _takes(model, (), inputs):
        return []
    return [str(key) for key in inputs if key not in inspect.signature(model.forward).parameters]


def _takes(model: nn.Module, arguments: Sequence[Any], keywords: Mapping[Any, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*arguments, **keywords)
    except (TypeError, ValueError):
        return False
    return True


PRECISIONS: Final = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Name of a mixed precision -> the format that autocast computes in; weights stay as they are. The 16-bit one scales
the loss (Micikevicius et al., Mixed Precision Training, ICLR 2018)."""


def check_precision(name: str | None) -> None:
    """Raise ``UsageError`` unless ``name`` is a mixed precision, or ``None``."""
    if name is not None and name not in PRECISIONS:
        raise unknown("precision", name, PRECISIONS)


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How every env of an engine is built and trained."""

    device: str = "cpu"
    lr: float = 5e-3
    weight_decay: float = 0.01
    batch_size: int = 100
    optimizer: OptimizerFactory = adamw
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    slot: SlotConfig = field(default_factory=SlotConfig)
    thresholds: GateThresholds = field(default_factory=GateThresholds)
    gradient_samples: int = 2
    """Training steps per epoch at which gradient norms are measured."""
    evaluation_batch: int | None = 1024
    """Most examples in one evaluation pass; ``None`` is what a batch of the split holds."""
    counterfactual_share: float = 1.0
    """Share of validation that is read under other alphas than the env's own."""
    sample_examples: int = 2
    """Of a task, examples in trial passes; work that does not grow with the batch is shared among as many."""
    precision: str | None = None
    """``"bf16-mixed"``, ``"16-mixed"``, or ``None``: as weights and inputs are."""

    def __post_init__(self) -> None:
        check_precision(self.precision)


class GrowthTask(Protocol):
    """What is grown, where, and how it is judged. A :class:`TaskSpec` is one."""

    @property
    def metric(self) -> Metric:
        """What the task is scored by."""

    @property
    def sites(self) -> Any:
        """Where slots sit, as :meth:`GrowingModel.wrap` takes it."""

    @property
    def blueprints(self) -> tuple[str, ...]:
        """What may grow."""

    @property
    def loss_figure(self) -> SplitFigure:
        """The loss over a split."""

    @property
    def metric_figure(self) -> SplitFigure:
        """The metric over a split."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """One env's own: nothing in it is shared with another env except data."""

    host: nn.Module
    optimizer: Optimizer
    batches: BatchSource
    splits: Mapping[str, SplitSource]
    """``validation`` and ``test``."""
    sample: Any
    """A few inputs as ``forward`` takes them, for trial passes."""
    sample_examples: int
    """How many examples those are."""
    criterion: Criterion
    """Training loss."""
    forward: Forward = call
    counted: bool = True
    """Whether the examples of a batch can be counted; where they cannot, a batch counts as one."""
    ranks: Ranks = LONE
    """The processes that train the host together."""
    spent: Mapping[str, int] = field(default_factory=dict)
    """Purpose -> MACs that were spent on it before the first epoch, such as on judging what a previous run grew."""


MakeSetup = Callable[[EnvSpec, Streams], TrainingSetup]
"""Makes an env's set-up. The same seed gives the same weights and the same order of examples."""


def from_task(task: TaskSpec, config: TrainerConfig, ranks: Ranks = LONE) -> MakeSetup:
    """Set-up of a task: a host from its factory, AdamW, batches in memory, of which each of ``ranks`` trains on its
    share."""

    def criterion(output: Any, targets: Tensor) -> Tensor:
        return task.loss(output, targets).mean()

    if task.feed is None:
        require_rows(len(task.data.train) % config.batch_size or config.batch_size, ranks)
    splits = {name: split.to(config.device) for name, split in task.data.splits().items()}

    def prepare(spec: EnvSpec, streams: Streams) -> TrainingSetup:
        with seeded(derive(spec.seed, "host")):
            host = task.host().to(config.device)
        batches = training_batches(task, config.batch_size, streams, config.device)
        return TrainingSetup(
            host=host,
            optimizer=config.optimizer(trainable(host), config.lr, config.weight_decay),
            batches=batches if ranks.count == 1 else SharedBatches(batches, ranks),
            splits=splits,
            sample=splits["train"].inputs[: config.sample_examples],
            sample_examples=len(splits["train"].inputs[: config.sample_examples]),
            criterion=criterion,
            ranks=ranks,
        )

    return prepare
