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
from esper.tasks.answers import Accuracy
from esper.tasks.base import Split
from esper.tasks.losses import own_loss
from esper.tasks.metrics import Judged, Scored, Trial, judged_by

N = 48
CE = nn.CrossEntropyLoss()
BCE = nn.BCEWithLogitsLoss()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, of: int, seed: int = 1) -> Tensor:
    return torch.randint(of, shape, generator=torch.Generator().manual_seed(seed))


def judged(metric: Any, output: Any, targets: Tensor, loss: Callable[..., Tensor] = CE) -> Judged:
    """As it is at set-up, in one batch."""
    figure = own_loss(loss, output, targets, 8)
    return judged_by(metric, Trial(output, targets, loss, figure, Split(targets, targets)))


def measured(metric: Any, output: Any, targets: Tensor, loss: Callable[..., Tensor] = CE) -> float:
    tally = judged(metric, output, targets, loss).figure.tally(1, 1)
    tally.add([output], targets)
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

RIGHT: dict[str, tuple[Any, Tensor, Any, Tensor]] = {
    "classes": (LOGITS, CLASS, CE, LOGITS.argmax(1) == CLASS),
    "classes in a column": (LOGITS, CLASS[:, None], one_of, LOGITS.argmax(1) == CLASS),
    "class numbers as floats": (
        LOGITS,
        CLASS.float(),
        lambda out, y: CE(out, y.long()),
        LOGITS.argmax(1) == CLASS,
    ),
    "positions behind classes": (TOKENS.mT, SEQUENCE, CE, TOKENS.argmax(2) == SEQUENCE),
    "classes last": (TOKENS, SEQUENCE, flat, TOKENS.argmax(2) == SEQUENCE),
    "as many positions as classes": (SQUARE.mT, SEQUENCE[:, :5], CE, SQUARE.argmax(2) == SEQUENCE[:, :5]),
    "the same, classes last": (SQUARE, SEQUENCE[:, :5], flat, SQUARE.argmax(2) == SEQUENCE[:, :5]),
    "ignored": (TOKENS.mT, HIDDEN, CE, (TOKENS.argmax(2) == HIDDEN)[HIDDEN != -100]),
    "ignored by a function": (TOKENS, HIDDEN, flat, (TOKENS.argmax(2) == HIDDEN)[HIDDEN != -100]),
    "class 0 ignored": (LOGITS, CLASS, nn.CrossEntropyLoss(ignore_index=0), (LOGITS.argmax(1) == CLASS)[CLASS != 0]),
    "binary in a column": (LOGITS[:, :1], LABELS[:, :1], BCE, (LOGITS[:, :1] > 0) == (LABELS[:, :1] > 0)),
    "binary, flat against a column": (
        LOGITS[:, :1],
        LABELS[:, 0].long(),
        lambda out, y: BCE(out[:, 0], y.float()),
        (LOGITS[:, 0] > 0) == (LABELS[:, 0] > 0),
    ),
    "binary probabilities": (
        LOGITS[:, 0].sigmoid(),
        LABELS[:, 0],
        lambda out, y: F.binary_cross_entropy(out, y),
        (LOGITS[:, 0] > 0) == (LABELS[:, 0] > 0),
    ),
    "labels": (LOGITS[:, :3], LABELS, BCE, (LOGITS[:, :3] > 0) == (LABELS > 0)),
    "labels, one of them each": (
        LOGITS,
        F.one_hot(CLASS, 5).float(),
        BCE,
        (LOGITS > 0) == (F.one_hot(CLASS, 5) > 0),
    ),
    "shares": (LOGITS, SHARES, CE, LOGITS.argmax(1) == SHARES.argmax(1)),
    "one-hot": (LOGITS, F.one_hot(CLASS, 5).float(), CE, LOGITS.argmax(1) == CLASS),
    "logits among others": (
        {"loss": torch.zeros(()), "logits": LOGITS},
        CLASS,
        lambda out, y: CE(out["logits"], y),
        LOGITS.argmax(1) == CLASS,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_accuracy_is_the_share_of_right_answers(name: str) -> None:
    output, targets, loss, right = RIGHT[name]
    assert measured("accuracy", output, targets, loss) == pytest.approx(percent(right))
    assert 0.0 < percent(right) < 100.0, "a case that says something"


@pytest.mark.parametrize(
    ("name", "chance"),
    [
        ("classes", 100.0 * float(CLASS.bincount().max()) / N),
        ("the same, classes last", percent(SEQUENCE[:, :5] == SEQUENCE[:, :5].flatten().mode().values)),
        ("ignored", 100.0 * float(HIDDEN[HIDDEN >= 0].bincount().max()) / int((HIDDEN >= 0).sum())),
        ("binary in a column", percent(LABELS[:, 0] == LABELS[:, 0].mode().values)),
        ("labels", percent(LABELS == LABELS.mode(dim=0).values)),
        ("shares", percent(SHARES.argmax(1) == SHARES.argmax(1).mode().values)),
    ],
)
def test_chance_is_what_the_best_constant_answer_scores(name: str, chance: float) -> None:
    output, targets, loss, _ = RIGHT[name]
    assert judged("accuracy", output, targets, loss).metric.chance == pytest.approx(chance)


def test_what_shapes_do_not_tell_can_be_said() -> None:
    output, targets = SQUARE, SEQUENCE[:, :5]

    def odd(out: Tensor, y: Tensor) -> Tensor:
        return (out.sum(2) - y).square().mean()

    with pytest.raises(UsageError, match=r"\(48, 5, 5\) holds the classes .* Accuracy\(class_axis=-1\)"):
        judged("accuracy", output, targets, odd)
    for axis in (1, -1):
        right = percent(output.argmax(axis) == targets)
        assert measured(Accuracy(class_axis=axis), output, targets, odd) == pytest.approx(right)
    with pytest.raises(UsageError, match="axis 0 .* legal"):
        judged(Accuracy(class_axis=0), output, targets, odd)


def test_a_threshold_that_the_loss_does_not_tell_can_be_said() -> None:
    output, targets = normal(N), LABELS[:, 0]

    def hinge(out: Tensor, y: Tensor) -> Tensor:
        return (1.3 - out * (2.0 * y - 1.0) + 0.3 * y).clamp(min=0.0).mean()

    with pytest.raises(UsageError, match=r"Accuracy\(threshold=0.0\) for logits"):
        judged("accuracy", output, targets, hinge)
    right = percent((output > 0.25) == (targets > 0))
    assert measured(Accuracy(threshold=0.25), output, targets, hinge) == pytest.approx(right)


def test_padding_of_ones_own_can_be_said() -> None:
    right = percent((TOKENS.argmax(2) == SEQUENCE)[SEQUENCE != 3])
    assert measured(Accuracy(ignore_index=3), TOKENS, SEQUENCE, flat) == pytest.approx(right)


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
        if bool(output.std() == 0):
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
