"""Accuracy is the share of right answers, whatever the shapes, or it asks how it is meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.leyline import UsageError
from esper.tasks.answers import Accuracy
from tasks.judging import (
    BCE,
    CE,
    CLASS,
    HIDDEN,
    LABELS,
    LOGITS,
    SEQUENCE,
    SHARES,
    SQUARE,
    TOKENS,
    N,
    flat,
    judged,
    measured,
    normal,
    one_of,
    percent,
)

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
