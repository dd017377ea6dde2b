"""A host that computes parts of itself anew in the backward pass: gradients of host and seeds are as without."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from small_hosts import put_seed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esper.kasmina import incubation
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.replay import Tape, same
from esper.leyline import SeedStage
from esper.tolaria.work import count_step

SAMPLE = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
WHERE = {"on": ["blocks.1"], "in": ["blocks.0.last", "blocks.1.first"], "behind another call": ["blocks.1.drop"]}


class Block(nn.Module):
    """Two layers with one activation; its inner part is behind a checkpoint of its own where ``inside`` says so."""

    def __init__(self, inside: bool | None) -> None:
        super().__init__()
        self.inside = inside
        self.first, self.act, self.last = nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)
        self.drop = nn.Dropout(0.3)

    def inner(self, x: Tensor) -> Tensor:
        return self.drop(self.act(self.last(self.act(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return x + run(self.inside, self.inner, x)


class Net(nn.Module):
    """Blocks behind checkpoints (``around``), or with checkpoints in them."""

    def __init__(self, around: bool | None = None, inside: bool | None = None) -> None:
        super().__init__()
        self.around = around
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block(inside) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = run(self.around, block, h)
        return self.head(h)


def run(form: bool | None, function: Any, x: Tensor) -> Tensor:
    return function(x) if form is None else checkpoint(function, x, use_reentrant=form)


def loss_of(output: Any) -> Tensor:
    return nn.functional.cross_entropy(output, torch.arange(6) % 4)


def gradients(
    sites: list[str], stage: SeedStage, alpha: float, shared: bool = True, **forms: bool | None
) -> list[Tensor | None]:
    """Of host and seeds after one step's backward passes."""
    torch.manual_seed(0)
    model = GrowingModel.wrap(Net(**forms), sites, SAMPLE)
    assert all(model.sharing.values())
    model.sharing = {slot_id: shared for slot_id in model.slots}
    torch.manual_seed(1)
    for slot_id in model.slots:
        put_seed(model, slot_id, stage, alpha)
    model.train()
    torch.manual_seed(2)
    probing = list(model.slots) if stage is SeedStage.TRAINING else []
    with model.record(probing) as tape:
        loss = loss_of(model(SAMPLE))
    torch.autograd.backward(loss)
    for slot_id in probing:
        probe_backward(model, tape, loss_of, slot_id)
    return [parameter.grad for parameter in (*model.host_parameters(), *model.slots.parameters())]


@pytest.mark.parametrize("form", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("place", ["around", "inside"])
@pytest.mark.parametrize(("stage", "alpha"), [(SeedStage.TRAINING, 0.0), (SeedStage.BLENDING, 0.4)])
@pytest.mark.parametrize("where", WHERE)
def test_gradients_are_those_without_checkpoints(
    where: str, stage: SeedStage, alpha: float, place: str, form: bool
) -> None:
    sites = WHERE[where]
    # what is called twice in front of the slot cannot be told apart when it is computed anew: a whole pass is made
    expected = gradients(sites, stage, alpha, shared=where != "behind another call")
    found = gradients(sites, stage, alpha, **{place: form})
    assert all(gradient is not None for gradient in expected)
    assert same(found, expected)


def test_the_work_of_a_step_is_that_without_checkpoints() -> None:
    torch.manual_seed(0)
    counts = []
    for form in (None, True, False):
        model = GrowingModel.wrap(Net(around=form), ["blocks.1"], SAMPLE)
        put_seed(model, "blocks_1", SeedStage.TRAINING)
        counts.append(count_step(model, partial(model, SAMPLE), len(SAMPLE), ["blocks_1"]))
    plain, *checkpointed = counts
    assert all(each.forward == plain.forward and each.inside == plain.inside for each in checkpointed)
    assert checkpointed[0] == checkpointed[1]


def test_where_the_second_pass_ends_before_its_backward_does_the_comparison_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replaying = Tape.replaying

    @contextmanager
    def ending_early(self: Tape, slot_id: str, *rest: Any) -> Any:
        def run() -> Any:
            with replaying(self, slot_id, *rest) as again:
                return again()

        yield run

    monkeypatch.setattr(Tape, "replaying", ending_early)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        gradients(["blocks.1"], SeedStage.TRAINING, 0.0, around=False)


def test_without_the_other_form_a_reentrant_checkpoint_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incubation, "reentrant_ones_replaced", nullcontext)
    with pytest.raises((RuntimeError, UserWarning), match="requires_grad|use_reentrant"):
        gradients(["blocks.1"], SeedStage.TRAINING, 0.0, around=True)
