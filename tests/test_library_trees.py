"""``grow`` and ``Grower`` on batches that are no pair of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding

from esper.leyline import DataError, UsageError
from esper.library import Budget, Grower, OwnChoices, grow
from esper.nissa.reader import read_journal
from own_loop import products

INPUTS, LABELS = products(96, 1)
STATIC: dict[str, Any] = {"at": ["net.1"], "policy": "static", "budget": Budget(epochs=2, lr=5e-3), "device": "cpu"}


class OwnLoss(nn.Module):
    """As models of Hugging Face are called, and what they give."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.smoothing = smoothing
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.smoothing), "logits": logits}


def encoded(size: int) -> list[BatchEncoding]:
    pairs = zip(INPUTS.split(size), LABELS.split(size), strict=True)
    return [BatchEncoding({"x": x, "labels": y}) for x, y in pairs]


def test_a_model_that_computes_its_own_loss_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, reference = OwnLoss(), OwnLoss()
    optimizer, its = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, reference))
    choices = OwnChoices(at=["net.1"], budget=STATIC["budget"], device="cpu")
    with Grower(model, optimizer, val=encoded(40), choices=choices, policy="static", run_dir=tmp_path / "r") as grower:
        for _ in range(2):
            for batch in encoded(32):
                optimizer.zero_grad()
                torch.autograd.backward(grower.loss(batch))
                grower.after_backward()
                optimizer.step()
                its.zero_grad()
                torch.autograd.backward(reference(**batch)["loss"])
                its.step()
            view = grower.after_epoch().view
    for ours, theirs in zip(grower.result.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        told = [(len(batch["labels"]), reference(**batch)) for batch in encoded(40)]
        right = (reference(INPUTS)["logits"].argmax(1) == LABELS).double().mean()
    assert view.loss == pytest.approx(sum(n * float(each["loss"]) for n, each in told) / len(LABELS), rel=1e-6)
    assert view.metric == pytest.approx(100.0 * float(right))
    assert view.metric_history[-1] != view.metric_history[0]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(INPUTS, LABELS, strict=True)


def test_a_loader_without_a_length(tmp_path: Path) -> None:
    net, loader = OwnLoss().net, DataLoader(Stream(), batch_size=16)
    common = {**STATIC, "at": ["1"], "val": loader, "loss": nn.CrossEntropyLoss()}
    with pytest.raises(UsageError, match="no length; say how many batches make an epoch: steps_per_epoch"):
        grow(net, train=loader, **common)
    result = grow(net, train=loader, steps_per_epoch=4, run_dir=tmp_path / "r", **common)
    (announced,) = [e.data["examples"] for e in read_journal(result.run_dir) if e.event_type.name == "TRAINING_STARTED"]
    assert announced == {"validation": 96}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"val": [(INPUTS, INPUTS, LABELS)], "loss": nn.CrossEntropyLoss()},
            r"tuple of 3 parts; a pair .* unpack=lambda batch",
        ),
        ({"loss": nn.CrossEntropyLoss()}, r"BatchEncoding of x, labels; .* loss=None"),
        ({"val": [{"x": INPUTS}] * 9}, "no loss was given, and the model's output, a dict, has none"),
        ({"val": [{"x": INPUTS, "y": LABELS}] * 9}, "its forward takes no y; forward=lambda"),
        ({"model": OwnLoss(0.1), "metric": "loss"}, "no value by example, and validation has 3 batches; .* at least 8"),
        ({"model": OwnLoss(0.1), "val": encoded(8)}, "'accuracy' cannot tell how the output answers"),
        ({"budget": Budget(epochs=2, evaluation_batch=5)}, "evaluation_batch divides batches"),
        ({"val": (batch for batch in encoded(32))}, "validation data are a generator, which can be read only once"),
    ],
)
def test_what_a_batch_does_not_tell_is_refused_with_how_to_say_it(changed: dict[str, Any], message: str) -> None:
    given = {"train": encoded(32), "val": encoded(32), **STATIC, **changed}
    with pytest.raises((DataError, UsageError), match=message) as refusal:
        grow(given.pop("model", None) or OwnLoss(), **given)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan"), "half"])
def test_a_share_is_above_0_and_at_most_1(share: Any) -> None:
    with pytest.raises(UsageError, match="counterfactual_share"):
        Budget(counterfactual_share=share)
