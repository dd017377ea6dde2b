"""Figures over a split: their values are those of the split at once, their standard errors those of resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MulticlassJaccardIndex

from esper.leyline import UsageError
from esper.tasks.losses import own_loss
from esper.tasks.reduction import (
    BatchLoss,
    Collected,
    MeanOf,
    RatioOf,
    SplitFigure,
    Summary,
    divisible,
    jackknife,
    number_of,
)

N, CLASSES = 300, 4


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a model, of one a little worse, and class numbers."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (N,), generator=generator)
    logits = 2.0 * F.one_hot(targets, CLASSES) + 1.5 * torch.randn(N, CLASSES, generator=generator)
    return logits, logits + torch.randn(N, CLASSES, generator=generator), targets


def taken(figure: SplitFigure, outputs: Sequence[Tensor], targets: Tensor, sizes: Sequence[int]) -> Summary:
    tally = figure.tally(len(outputs), len(sizes))
    pieces = [torch.split(output, list(sizes)) for output in outputs]
    for i, part in enumerate(torch.split(targets, list(sizes))):
        for config, piece in enumerate(pieces):
            tally.add(config, piece[i], part, len(part))
    return tally.summary()


def bootstrap(value: object, one: Tensor, other: Tensor, targets: Tensor, times: int = 400) -> float:
    """Standard error of the difference, by drawing examples again: an independent reference."""
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.randint(len(targets), (len(targets),), generator=generator) for _ in range(times))
    return float(np.std([float(value(other[i], targets[i])) - float(value(one[i], targets[i])) for i in drawn]))  # type: ignore[operator]


def accuracy(output: Tensor, targets: Tensor) -> Tensor:
    return (output.argmax(1) == targets).float()


def test_a_mean_and_its_paired_error() -> None:
    one, other, targets = example()
    summary = taken(MeanOf(accuracy), (one, other), targets, (100, 100, 100))
    difference = (accuracy(other, targets) - accuracy(one, targets)).double()
    assert summary.value.tolist() == pytest.approx([float(accuracy(each, targets).mean()) for each in (one, other)])
    assert summary.se.tolist() == pytest.approx([0.0, float(difference.std()) / math.sqrt(N)])


def test_a_ratio_of_equal_weights_is_a_mean() -> None:
    one, other, targets = example()
    mean = taken(MeanOf(accuracy), (one, other), targets, (N,))
    ratio = taken(RatioOf(lambda out, y: (accuracy(out, y), torch.ones(len(y)))), (one, other), targets, (N,))
    assert ratio.value.tolist() == pytest.approx(mean.value.tolist())
    assert ratio.se.tolist() == pytest.approx(mean.se.tolist())


@pytest.mark.parametrize("sizes", [(N,), (128, 128, 44), (10,) * 30, (7,) * 42 + (6,)])
def test_a_loss_that_only_takes_batches_has_the_error_that_its_examples_have(sizes: tuple[int, ...]) -> None:
    one, other, targets = example()
    figure = own_loss(
        lambda out, y: F.cross_entropy(out, y), one[: sizes[0]], targets[: sizes[0]], len(sizes), sizes[0]
    )
    assert figure.each is None and figure.divisible
    summary = taken(figure, (one, other), targets, sizes)
    losses = [F.cross_entropy(each, targets, reduction="none").double() for each in (one, other)]
    assert summary.value.tolist() == pytest.approx([float(loss.mean()) for loss in losses], rel=1e-5)
    by_example = float((losses[1] - losses[0]).std()) / math.sqrt(N)
    # a jackknife of 16 groups knows its error to about a fifth
    assert summary.se[0] == 0.0 and 0.5 * by_example < summary.se[1] < 1.7 * by_example


def test_whole_batches_alone_give_an_error_too() -> None:
    one, other, targets = example()
    figure = BatchLoss(lambda out, y: F.cross_entropy(out, y), lambda y, n: torch.tensor(n), divisible=False)
    parted = BatchLoss(lambda out, y: F.cross_entropy(out, y), lambda y, n: torch.tensor(n))
    whole = taken(figure, (one, other), targets, (30,) * 10)
    assert whole.se[1] == pytest.approx(taken(parted, (one, other), targets, (30,) * 10).se[1], rel=0.6)
    assert math.isnan(taken(figure, (one, other), targets, (N,)).se[1]), "one group says nothing of the noise"


@pytest.mark.parametrize(
    "metric",
    [
        MulticlassF1Score(CLASSES, average="macro", validate_args=False),
        MulticlassJaccardIndex(CLASSES, validate_args=False),
    ],
    ids=lambda metric: type(metric).__name__,
)
@pytest.mark.parametrize("sizes", [(N,), (128, 128, 44), (15,) * 20])
def test_what_reduces_over_the_split_is_not_a_mean_of_batches(metric: object, sizes: tuple[int, ...]) -> None:
    one, other, targets = example()
    summary = taken(Collected(metric, lambda output: output), (one, other), targets, sizes)  # type: ignore[arg-type]
    at_once = [float(metric(each, targets)) for each in (one, other)]  # type: ignore[operator]
    assert summary.value.tolist() == pytest.approx(at_once, abs=1e-6)
    reference = bootstrap(metric, one, other, targets, 60)
    assert summary.se[0] == 0.0 and 0.45 * reference < summary.se[1] < 1.9 * reference
    assert float(metric(one, targets)) == pytest.approx(at_once[0]), "the user's own object is left as it was"  # type: ignore[operator]


def test_the_area_under_a_curve() -> None:
    one, other, targets = example()
    metric, targets = BinaryAUROC(validate_args=False), (targets == 0).long()
    summary = taken(Collected(metric, lambda output: output[:, 0].sigmoid()), (one, other), targets, (150, 150))
    assert summary.value.tolist() == pytest.approx(
        [float(metric(each[:, 0].sigmoid(), targets)) for each in (one, other)]
    )
    assert 0.0 < summary.se[1] < 0.05


def test_one_configuration_costs_no_copies() -> None:
    one, _, targets = example()
    summary = taken(Collected(MulticlassF1Score(CLASSES), lambda output: output), (one,), targets, (150, 150))
    assert summary.se.tolist() == [0.0]


def test_a_metric_of_several_numbers_is_refused() -> None:
    metric = MulticlassF1Score(CLASSES, average="none")
    one, _, targets = example()
    metric.update(one, targets)
    with pytest.raises(UsageError, match=r"shape \(4,\); one number is needed .*average='macro'"):
        number_of(metric)


def test_what_cannot_be_divided_says_why() -> None:
    one, _, targets = example()
    fixed = torch.arange(N)
    assert divisible(lambda out, y: F.cross_entropy(out, y), one, targets, N) is None
    assert divisible(lambda out, y: (out["all"] * fixed[:, None]).sum(), {"all": one}, targets, N) is not None
    assert "does not hold one row" in str(divisible(lambda out, y: out[0].sum(), (one, torch.zeros(3)), targets, N))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=40)
    without = [np.array([0.0, np.delete(values, i).mean()]) for i in range(40)]
    assert jackknife(without, 2)[1] == pytest.approx(values.std(ddof=1) / math.sqrt(40))
