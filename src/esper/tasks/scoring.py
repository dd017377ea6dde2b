"""Per-example losses and scores."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from esper.leyline import Metric
from esper.tasks.base import Data


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats per example: ``logits [N, K]``, ``targets`` int64 ``[N]`` -> ``[N]``."""
    return F.cross_entropy(logits, targets, reduction="none")


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """100 where the largest logit is the target, else 0: ``[N, K]``, ``[N]`` -> ``[N]``, percent."""
    return 100.0 * (logits.argmax(dim=1) == targets).to(logits.dtype)


def accuracy_metric(chance: float) -> Metric:
    """Accuracy in percent; ``chance`` is the score of the best constant answer."""
    return Metric("accuracy", "%", higher_is_better=True, chance=chance, low=0.0, high=100.0)


def constant_accuracy(data: Data) -> float:
    """Percent of validation that the commonest class of training is."""
    commonest = data.train.targets.flatten().bincount().argmax()
    return 100.0 * float((data.validation.targets == commonest).double().mean())
