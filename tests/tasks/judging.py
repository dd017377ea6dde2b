"""Outputs and targets of every kind, and what a metric makes of them at set-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.tasks.answers import ignored_by
from esper.tasks.base import Split
from esper.tasks.facts import TargetFacts
from esper.tasks.losses import own_loss
from esper.tasks.metrics import FirstBatch, Judged, judged_by

N = 48
CE = nn.CrossEntropyLoss()
BCE = nn.BCEWithLogitsLoss()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, of: int, seed: int = 1) -> Tensor:
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(seed))


def judged(metric: Any, output: Any, targets: Tensor, loss: Callable[..., Tensor] = CE) -> Judged:
    """As it is at set-up, in one batch."""
    figure = own_loss(loss, output, targets, 8, len(targets))
    facts = TargetFacts(ignored_by(metric, loss))
    facts.add(targets)
    return judged_by(metric, FirstBatch(output, targets, len(targets), loss, figure, Split(targets, targets), facts))


def measured(metric: Any, output: Any, targets: Tensor, loss: Callable[..., Tensor] = CE) -> float:
    tally = judged(metric, output, targets, loss).figure.tally(1, 1)
    tally.add(0, output, targets, len(targets))
    return float(tally.summary().value[0])


def percent(right: Tensor) -> float:
    return 100.0 * float(right.double().mean())


def flat(output: Tensor, targets: Tensor) -> Tensor:
    """The loss of those whose classes are last."""
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), targets.reshape(-1))


def one_of(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets.squeeze(1))


LOGITS, TOKENS, SQUARE = normal(N, 5), normal(N, 7, 5), normal(N, 5, 5)
CLASS, SEQUENCE, LABELS = classes(N, of=5), classes(N, 7, of=5), classes(N, 3, of=2).float()
HIDDEN = SEQUENCE.masked_fill(torch.arange(7) > 1 + torch.arange(N)[:, None] % 5, -100)
SHARES = normal(N, 5, seed=4).softmax(1)
