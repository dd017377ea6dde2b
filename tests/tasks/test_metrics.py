"""A user's metric is what the user would compute, or it is refused in one sentence before the first batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanSquaredError, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from esper.leyline import Metric, UsageError
from esper.tasks.metrics import Scored
from tasks.judging import CE, CLASS, LOGITS, N, classes, judged, measured, normal


@dataclass
class Pair:
    one: Tensor
    other: Tensor


@pytest.mark.parametrize(
    ("metric", "output", "targets", "loss", "message"),
    [
        ("accuracy", normal(N, 1), normal(N, 1, seed=2), nn.MSELoss(), "quantities such as .*metric='mae'"),
        ("accuracy", normal(N), normal(N, seed=2), nn.MSELoss(), "quantities such as .*metric='mae'"),
        ("accuracy", normal(N, 4), classes(N, 6, of=4), lambda out, y: out.mean() * y.sum(), "cannot tell how"),
        ("accuracy", (LOGITS, LOGITS), CLASS, lambda out, y: CE(out[0], y), "a tuple without logits"),
        ("accuracy", Pair(LOGITS, LOGITS), CLASS, lambda out, y: CE(out.one, y), "a Pair without logits"),
        ("mae", LOGITS, CLASS, CE, "one number for one number"),
        ("acuracy", LOGITS, CLASS, CE, "did you mean 'accuracy'"),
        (3.0, LOGITS, CLASS, CE, "metric is a float"),
        (MulticlassAccuracy, LOGITS, CLASS, CE, "the class MulticlassAccuracy; give an object"),
        (MulticlassAccuracy(5, average="none"), LOGITS, CLASS, CE, r"shape \(5,\); one number"),
        (MulticlassAccuracy(9), LOGITS, CLASS, CE, "MulticlassAccuracy' fails on the first validation batch, output"),
        (lambda out, y: (out.argmax(1) == y).float().mean(), LOGITS, CLASS, CE, r"shape \(\) for 48 examples"),
        (lambda out, y: 0.5, LOGITS, CLASS, CE, "a float for 48 examples; one number per example"),
        (lambda out, y: out.nonsense, LOGITS, CLASS, CE, "fails on the first validation batch"),
        (Scored(Metric("m", ""), lambda out, y: out), LOGITS, CLASS, CE, r"shape \(48, 5\) for 48"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    metric: Any, output: Any, targets: Tensor, loss: Callable[..., Tensor], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        judged(metric, output, targets, loss)
    assert "\n" not in str(refusal.value)


def test_an_object_that_does_not_know_which_way_is_better() -> None:
    class Sum:
        def __init__(self) -> None:
            self.total = 0.0

        def update(self, preds: Tensor, target: Tensor) -> None:
            self.total += float(preds.sum())

        def compute(self) -> float:
            return self.total

        def reset(self) -> None:
            self.total = 0.0

    with pytest.raises(UsageError, match="does not say whether higher is better"):
        judged(Sum(), LOGITS, CLASS)
    told = Scored(Metric("sum", "", higher_is_better=False), Sum())
    assert measured(told, LOGITS, CLASS) == pytest.approx(float(LOGITS.sum()), abs=1e-4)


def test_objects_of_torchmetrics_say_what_they_are() -> None:
    metric = judged(MulticlassF1Score(5, average="macro"), LOGITS, CLASS).metric
    assert (metric.name, metric.higher_is_better, metric.low, metric.high) == ("MulticlassF1Score", True, 0.0, 1.0)
    commonest = torch.full((N,), int(CLASS.mode().values))
    best = max(float(MulticlassF1Score(5, average="macro")(torch.full((N,), number), CLASS)) for number in range(5))
    assert metric.chance == pytest.approx(best)
    assert metric.chance == pytest.approx(float(MulticlassF1Score(5, average="macro")(commonest, CLASS)))
    error = judged(MeanSquaredError(), normal(N, 1), normal(N, 1, seed=2), nn.MSELoss()).metric
    assert not error.higher_is_better and error.span is None
    assert error.chance == pytest.approx(float(normal(N, 1, seed=2).var(unbiased=False)))


def test_where_a_constant_scores_nothing_there_is_no_chance() -> None:
    def spread(output: Tensor, targets: Tensor) -> Tensor:
        if bool(output.std() < 1e-6):
            raise ValueError("all answers are one")
        return (output - targets).abs() / output.std()

    assert judged(spread, normal(N), normal(N, seed=2), nn.MSELoss()).metric.chance is None
    known = Scored(Metric("correlation", "", chance=0.0), PearsonCorrCoef())
    assert judged(known, normal(N), normal(N, seed=2), nn.MSELoss()).metric.chance == 0.0


def test_a_function_of_one_value_per_example_is_a_metric() -> None:
    def top_two(output: Tensor, targets: Tensor) -> Tensor:
        return (output.topk(2).indices == targets[:, None]).any(1).float()

    found = judged(top_two, LOGITS, CLASS)
    assert found.metric.name == "top_two" and found.metric.higher_is_better
    assert measured(top_two, LOGITS, CLASS) == pytest.approx(float(top_two(LOGITS, CLASS).mean()))


def test_a_loss_has_no_chance_that_a_model_can_fall_back_to() -> None:
    assert judged("loss", LOGITS, CLASS).metric.chance is None


def test_mean_absolute_error() -> None:
    output, targets = normal(N, 1), normal(N, seed=2)
    loss = lambda out, y: F.mse_loss(out[:, 0], y)  # noqa: E731
    assert measured("mae", output, targets, loss) == pytest.approx(float((output[:, 0] - targets).abs().mean()))
    chance = judged("mae", output, targets, loss).metric.chance
    assert chance == pytest.approx(float((targets - targets.median()).abs().mean()))
