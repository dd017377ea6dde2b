"""A seed that learns by the probe pass: the host is, bit for bit, as if it were not there."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small_hosts import CASES, put_seed, wrapped
from torch import Tensor, nn

from esper.kasmina import incubation
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.kasmina.replay import same
from esper.leyline import SeedStage

STEPS = 20


def loss_of(output: Any) -> Tensor:
    logits = output["logits"] if isinstance(output, dict) else output
    targets = torch.arange(logits.shape[0]).remainder(logits.shape[-1])
    return nn.functional.cross_entropy(logits if logits.ndim == 2 else logits.mean(1), targets)


def train(model: GrowingModel, sample: Any, slot_ids: list[str]) -> dict[str, Any]:
    """Twenty steps of the host, with or without seeds that learn behind it; everything the host is afterwards."""
    model.train()
    torch.manual_seed(11)
    optimizer = torch.optim.AdamW(model.host_parameters(), lr=1e-2)
    seeds = [parameter for slot_id in slot_ids for parameter in model.seed_parameters(slot_id)]
    seed_optimizer = torch.optim.AdamW(seeds, lr=1e-2) if seeds else None
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with model.record(slot_ids) as tape:
            loss = loss_of(model(sample))
        loss.backward()
        if seed_optimizer is not None:
            seed_optimizer.zero_grad()
            losses.append([probe_backward(model, tape, loss_of, slot_id) for slot_id in slot_ids])
        optimizer.step()
        if seed_optimizer is not None:
            seed_optimizer.step()
    return {
        "host": dict(model.host.state_dict()),
        "optimizer": optimizer.state_dict()["state"],
        "gradients": [parameter.grad for parameter in model.host_parameters()],
        "random": torch.get_rng_state(),
        "losses": losses,
    }


@pytest.mark.parametrize("name", [*CASES, "whole passes"])
def test_a_host_with_a_seed_in_training_is_bit_equal_to_one_without(name: str) -> None:
    case = "residual" if name == "whole passes" else name
    alone, sample = wrapped(case)
    model, _ = wrapped(case)
    if name == "whole passes":
        model.sharing = dict.fromkeys(model.slots, False)
    torch.manual_seed(5)
    for slot_id in model.slots:
        put_seed(model, slot_id, SeedStage.TRAINING)
    born = copy.deepcopy([list(slot.seed_parameters()) for slot in model.slots.values()])

    without = train(alone, sample, [])
    beside = train(model, sample, list(model.slots))

    for part in ("host", "optimizer", "gradients", "random"):
        assert same(beside[part], without[part]), part
    moved = [not same(list(slot.seed_parameters()), old) for slot, old in zip(model.slots.values(), born, strict=True)]
    assert all(moved)
    assert all(last < first for first, last in zip(beside["losses"][0], beside["losses"][-1], strict=True))


@pytest.mark.parametrize(("guard", "part"), [("buffers_kept", "host"), ("random_kept", "random")])
def test_without_its_guards_the_comparison_would_fail(monkeypatch: pytest.MonkeyPatch, guard: str, part: str) -> None:
    monkeypatch.setattr(incubation, guard, lambda _: nullcontext())
    alone, sample = wrapped("residual")
    model, _ = wrapped("residual")
    put_seed(model, "blocks_0", SeedStage.TRAINING)
    assert not same(train(model, sample, ["blocks_0"])[part], train(alone, sample, [])[part])


def test_the_gradient_is_that_of_the_seed_blended_in() -> None:
    model, sample = wrapped("pointwise")
    put_seed(model, "blocks_1", SeedStage.TRAINING)
    model.eval()
    with model.record(["blocks_1"]) as tape:
        loss_of(model(sample))
    found = probe_backward(model, tape, loss_of, "blocks_1")
    gradients = [parameter.grad.clone() for parameter in model.seed_parameters("blocks_1")]

    with model.alphas({"blocks_1": 1.0}):
        loss = loss_of(model(sample))
    expected = torch.autograd.grad(loss, list(model.seed_parameters("blocks_1")))

    assert found == loss.item()
    # the second pass is of the part behind the slot alone; its sums may be in another order
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))
    assert all(parameter.grad is None for parameter in model.host_parameters())

    probe_backward(model, tape, loss_of, "blocks_1")
    for parameter, gradient in zip(model.seed_parameters("blocks_1"), gradients, strict=True):
        assert torch.allclose(parameter.grad, 2 * gradient)


class WithMemory(nn.Module):
    """A seed with a BatchNorm: it needs statistics of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.norm(h)


def test_the_seed_keeps_its_own_statistics_and_the_others_do_not_move() -> None:
    model, sample = wrapped("residual")
    for slot_id in ("blocks_0", "blocks_2"):
        put_seed(model, slot_id, SeedStage.TRAINING)
        model.slots[slot_id].seed = WithMemory(4)
    model.slots["blocks_2"].state.stage, model.slots["blocks_2"].state.alpha = SeedStage.HOLDING, 1.0
    model.train()
    with model.record(["blocks_0"]) as tape:
        loss_of(model(sample)).backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    probe_backward(model, tape, loss_of, "blocks_0")
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, buffers[name])}
    assert changed and all(name.startswith("slots.blocks_0.seed.") for name in changed)


def test_an_exception_in_the_loss_leaves_no_trace() -> None:
    model, sample = wrapped("residual")
    put_seed(model, "blocks_0", SeedStage.TRAINING)
    model.train()
    with model.record(["blocks_0"]) as tape:
        model(sample)
    buffers = {name: buffer.clone() for name, buffer in model.host.named_buffers()}
    random = torch.get_rng_state()

    def fail(output: Any) -> Tensor:
        raise ArithmeticError("boom")

    with pytest.raises(ArithmeticError):
        probe_backward(model, tape, fail, "blocks_0")
    assert same(dict(model.host.named_buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(tap.alpha is None and not tap.muted for tap in model.taps.values())
    assert all(parameter.grad is None for parameter in model.parameters())


class Skips(nn.Module):
    """Leaves blocks out at random while training, as layer drop does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                x = torch.tanh(block(x))
        return self.head(x)


def test_a_pass_that_left_the_site_out_teaches_nothing_or_something_but_never_fails() -> None:
    torch.manual_seed(0)
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(Skips(), ["blocks.1"], sample)
    put_seed(model, "blocks_1", SeedStage.TRAINING)
    model.train()
    taught = []
    for _ in range(12):
        with model.record() as tape:
            loss_of(model(sample)).backward()
        probe_backward(model, tape, loss_of, "blocks_1")
        gradients = [parameter.grad for parameter in model.seed_parameters("blocks_1")]
        taught.append(any(gradient is not None for gradient in gradients))
        model.zero_grad()
    assert any(taught) and not all(taught)
