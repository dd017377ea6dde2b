"""A loss over a split is what the user's own says of the split at once, however it reduces itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from esper.leyline import UsageError
from esper.tasks.losses import own_loss
from esper.tasks.reduction import BatchLoss, Summary

WEIGHT = torch.tensor([1.0, 10.0, 0.3])


def tallied(figure: BatchLoss, outputs: list[Any], targets: list[Tensor]) -> Summary:
    """The figure of a model and of one whose outputs are half as large."""
    tally = figure.tally(2, len(targets))
    for output, target in zip(outputs, targets, strict=True):
        for config, factor in enumerate((1.0, 0.5)):
            tally.add(config, factor * output, target, len(target))
    return tally.summary()


@st.composite
def counted_losses(draw: st.DrawFn) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A cross-entropy with weights and ignored labels, on batches of unequal size and unequal share of labels."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    tail = draw(st.sampled_from([(), (5,), (2, 3)]))
    ignored = draw(st.sampled_from([-100, 0, 7]))
    kind = draw(st.sampled_from([nn.CrossEntropyLoss, nn.NLLLoss]))
    smoothing = {"label_smoothing": 0.1} if kind is nn.CrossEntropyLoss and draw(st.booleans()) else {}
    loss = kind(weight=WEIGHT if draw(st.booleans()) else None, ignore_index=ignored, **smoothing)
    sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=4))
    outputs = [torch.randn(n, 3, *tail, generator=generator).log_softmax(1) for n in sizes]
    targets = [torch.randint(3, (n, *tail), generator=generator) for n in sizes]
    hidden = [torch.rand(target.shape, generator=generator) < draw(st.floats(0.0, 0.9)) for target in targets]
    targets = [target.masked_fill(hide, ignored) for target, hide in zip(targets, hidden, strict=True)]
    # the first batch is the one that the loss is tried on, and must hold a label
    targets[0].view(-1)[0] = 1
    return loss, outputs, targets


@given(counted_losses())
@settings(max_examples=60, deadline=None)
def test_by_what_counts_it_is_that_of_the_split_at_once(
    case: tuple[nn.Module, list[Tensor], list[Tensor]],
) -> None:
    loss, outputs, targets = case
    figure = own_loss(loss, outputs[0], targets[0], len(targets), len(targets[0]))
    assert figure.each is not None, "each example has a loss of its own"
    summary = tallied(figure, outputs, targets)
    for factor, value in zip((1.0, 0.5), summary.value, strict=True):
        assert value == pytest.approx(float(loss(factor * torch.cat(outputs), torch.cat(targets))), rel=1e-4, abs=1e-6)


def batches(*shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) for n in (8, 8, 5)]


SOFT = [each.softmax(1) for each in batches(4, seed=1)]
BINARY = [(each > 0).float() for each in batches(4, seed=1)]
CASES: dict[str, tuple[Any, list[Tensor], list[Tensor]]] = {
    "MSE": (nn.MSELoss(), batches(4), batches(4, seed=1)),
    "BCE with weights": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2, 3, 4])), batches(4), BINARY),
    "BCE of one logit": (nn.BCEWithLogitsLoss(), batches(1), [each[:, :1] for each in BINARY]),
    "KL batchmean": (nn.KLDivLoss(reduction="batchmean"), [each.log_softmax(1) for each in batches(4)], SOFT),
    "soft cross-entropy": (nn.CrossEntropyLoss(), batches(4), SOFT),
    "a function": (F.smooth_l1_loss, batches(4), batches(4, seed=1)),
    "a partial function": (partial(F.mse_loss, reduction="mean"), batches(4), batches(4, seed=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_that_know_their_examples(name: str) -> None:
    loss, outputs, targets = CASES[name]
    figure = own_loss(loss, outputs[0], targets[0], 3, len(targets[0]))
    assert figure.each is not None
    summary = tallied(figure, outputs, targets)
    assert summary.value[0] == pytest.approx(float(loss(torch.cat(outputs), torch.cat(targets))), rel=1e-5)
    by_lambda = tallied(
        own_loss(lambda out, y: loss(out, y), outputs[0], targets[0], 3, len(targets[0])), outputs, targets
    )
    assert by_lambda.value.tolist() == pytest.approx(summary.value.tolist())
    # 16 groups of 21 examples know the error roughly
    assert by_lambda.se[1] == pytest.approx(summary.se[1], rel=0.5)


def contrastive(output: Tensor, targets: Tensor) -> Tensor:
    """InfoNCE: the other examples of the batch are what each is told from."""
    one, other = (F.normalize(half, dim=1) for half in output.chunk(2, 1))
    return F.cross_entropy(one @ other.T / 0.1, torch.arange(len(one)))


class Pretender(nn.Module):
    """Has ``reduction``, and yet no loss by example: it tells examples apart."""

    reduction = "mean"

    def forward(self, output: Tensor, targets: Tensor) -> Tensor:
        similar = output @ output.T
        if self.reduction == "none":
            return similar.diagonal()
        return similar.logsumexp(1).mean()


@pytest.mark.parametrize("loss", [contrastive, Pretender()], ids=["contrastive", "pretender"])
def test_what_examples_do_to_one_another_is_left_in(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    outputs, targets = batches(6), [torch.zeros(n).long() for n in (8, 8, 5)]
    figure = own_loss(loss, outputs[0], targets[0], 3, len(targets[0]))
    assert figure.each is None
    value = tallied(figure, outputs, targets).value[0]
    own_loop = sum(float(loss(out, y)) * len(y) for out, y in zip(outputs, targets, strict=True)) / 21
    assert value == pytest.approx(own_loop) and value > 0.5, "one by one each would be told from nothing"


def test_a_sum_is_a_sum_of_the_batch() -> None:
    outputs, targets = batches(4), batches(4, seed=1)
    loss = nn.MSELoss(reduction="sum")
    figure = own_loss(loss, outputs[0], targets[0], 3, len(targets[0]))
    own_loop = sum(float(loss(out, y)) * len(y) for out, y in zip(outputs, targets, strict=True)) / 21
    assert tallied(figure, outputs, targets).value[0] == pytest.approx(own_loop)


def test_a_batch_without_a_label_does_not_count() -> None:
    outputs, targets = batches(3), [torch.ones(n).long() for n in (8, 8, 5)]
    targets[1][:] = -100
    loss = nn.CrossEntropyLoss()
    value = tallied(own_loss(loss, outputs[0], targets[0], 3, len(targets[0])), outputs, targets).value[0]
    assert value == pytest.approx(float(loss(torch.cat(outputs), torch.cat(targets))))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.MSELoss(reduction="none"), r"a tensor of shape \(8, 3\); one number"),
        (lambda out, y: 1.0, "a float; one number"),
        (lambda out, y: F.cross_entropy(out, y.float().flatten()), "fails on the first validation batch"),
        (lambda out, y: (out * torch.arange(8)[:, None]).sum() * y.sum(), "batches cannot be divided"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Callable[..., Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        own_loss(loss, batches(3)[0], batches(3, seed=1)[0], 1, 8)


def test_with_enough_batches_whole_ones_will_do() -> None:
    figure = own_loss(lambda out, y: (out * torch.arange(8)[:, None]).sum(), batches(3)[0], batches(3)[0], 8, 8)
    assert figure.each is None and not figure.divisible
