"""The compute ledger: counts against hand-computed ones and against torch's own counter."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.leyline import REGISTRY, DataError, TelemetryEventType, UsageError
from esper.tolaria.ledger import Ledger, Macs, count


class Scaled(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Vector(nn.Module):
    """``y = W m(x)`` with the mean over the batch: work that does not grow with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x.mean(0)


def macs(model: nn.Module, *inputs: Tensor) -> int:
    return count(lambda: model(*inputs), len(inputs[0]), model=model).forward


LAYERS: list[tuple[str, nn.Module, tuple[tuple[int, ...], ...], int]] = [
    ("linear", nn.Linear(16, 32), ((4, 16),), 16 * 32),
    ("linear without bias, 3-D", nn.Linear(16, 32, bias=False), ((4, 8, 16),), 8 * 16 * 32),
    ("conv 1-D, grouped", nn.Conv1d(8, 12, 3, groups=4), ((4, 8, 16),), 12 * 2 * 3 * 14),
    ("conv 2-D, padded, strided", nn.Conv2d(3, 8, 3, padding=1, stride=2), ((2, 3, 8, 8),), 8 * 3 * 9 * 4 * 4),
    ("depthwise", nn.Conv2d(6, 6, 5, padding=2, groups=6), ((2, 6, 7, 7),), 6 * 25 * 49),
    ("transposed", nn.ConvTranspose1d(8, 12, 3), ((4, 8, 16),), 8 * 12 * 3 * 16),
    ("attention kernel", Scaled(), ((4, 2, 8, 4), (4, 2, 6, 4), (4, 2, 6, 4)), 2 * 8 * 6 * (4 + 4)),
    (
        "multi-head attention",
        nn.MultiheadAttention(16, 4, batch_first=True),
        ((4, 8, 16),) * 3,
        4 * 8 * 16 * 16 + 2 * 8 * 8 * 16,
    ),
    (
        "transformer layer",
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True),
        ((4, 8, 16),),
        4 * 8 * 16 * 16 + 2 * 8 * 8 * 16 + 2 * 8 * 16 * 32,
    ),
    ("lstm", nn.LSTM(16, 8, batch_first=True), ((4, 5, 16),), 5 * 4 * 8 * (16 + 8)),
    ("gru", nn.GRU(16, 8, batch_first=True), ((4, 5, 16),), 5 * 3 * 8 * (16 + 8)),
    ("norm and activation", nn.Sequential(nn.LayerNorm(16), nn.GELU()), ((4, 16),), 0),
]


@pytest.mark.parametrize(("layer", "shapes", "expected"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_counts_by_hand(layer: nn.Module, shapes: tuple[tuple[int, ...], ...], expected: int) -> None:
    assert macs(layer, *(torch.randn(shape) for shape in shapes)) == expected


def test_what_torchs_own_counter_misses() -> None:
    """The reason for the additions: torch 2.13 counts these as free on a CPU."""
    attention, x = nn.MultiheadAttention(16, 4, batch_first=True).eval(), torch.randn(4, 8, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(x, x, x)
        Scaled()(*(torch.randn(4, 2, 8, 4) for _ in range(3)))
        nn.LSTM(16, 8)(x)
    assert counter.get_total_flops() == 0


def test_agrees_with_torchs_counter_where_it_counts() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(128, 10)
    )
    x = torch.randn(5, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert macs(model, x) * 5 * 2 == counter.get_total_flops()


def test_seeds_are_counted_on_their_own_too() -> None:
    first, seed, last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    model = nn.Sequential(first, seed, last)
    found = count(lambda: model(torch.randn(3, 4)), 3, {"r1": seed}, model=model)
    assert found == Macs(24 + 36 + 12, inside={"r1": 36})
    idle = count(lambda: first(torch.randn(3, 4)), 3, {"r1": seed}, model=model)
    assert idle == Macs(24), "a seed that did not run cost nothing"
    assert not seed._forward_hooks and not seed._forward_pre_hooks

    twice = nn.Sequential(seed, nn.Linear(6, 6), seed, last)
    found = count(lambda: twice(torch.randn(3, 6)), 3, {"r1": seed}, model=twice)
    assert found == Macs(3 * 36 + 12, inside={"r1": 2 * 36})
    assert not seed._forward_hooks and not seed._forward_pre_hooks


def test_work_that_does_not_grow_with_the_batch_is_rounded_up() -> None:
    assert macs(Vector(), torch.randn(5, 4)) == 5, "24 MACs over 5 examples"
    with pytest.raises(UsageError, match="at least 1 example"):
        count(lambda: None, 0, model=Vector())


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        macs(model, torch.randn(3, 5))
    position = torch.get_rng_state()
    count(lambda: model(torch.zeros(3, 4)), 3, model=model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), position)
    assert torch.backends.mha.get_fastpath_enabled() is fastpath


def test_payload_has_the_keys_of_its_contract() -> None:
    ledger = Ledger()
    ledger.charge("train_forward", 10, {"seed-1": 4})
    ledger.charge("train_backward", 20, {"seed-1": 8, "seed-2": 1})
    ledger.charge("test", 5)
    ledger.discard("seed-1")
    ledger.discard("never trained")
    assert ledger.spent() == {
        "train_forward_macs": 10,
        "train_backward_macs": 20,
        "probe_macs": 0,
        "validation_macs": 0,
        "counterfactual_macs": 0,
        "discarded_seed_macs": 12,
        "test_macs": 5,
        "policy_macs": 0,
        "total_macs": 35,
    }
    contract = REGISTRY[TelemetryEventType.COMPUTE_SPENT].payload
    assert set(ledger.spent()) <= set(contract.__annotations__)
    msgspec.convert({**ledger.spent(), "seconds": 1.0}, contract)


@pytest.mark.parametrize(
    ("purpose", "amount", "seeds"),
    [
        ("lunch", 1, {}),
        ("discarded_seed", 1, {}),
        ("test", -1, {}),
        ("test", 1.0, {}),
        ("test", 3, {"a": 2, "b": 2}),
        ("test", 3, {"a": -1}),
    ],
)
def test_impossible_charges_are_refused_whole(purpose: str, amount: Any, seeds: dict[str, int]) -> None:
    ledger = Ledger()
    with pytest.raises(UsageError):
        ledger.charge(purpose, amount, seeds)
    assert ledger == Ledger()


charges = st.tuples(
    st.sampled_from(["train_forward", "train_backward", "probe", "validation", "counterfactual", "test", "policy"]),
    st.integers(0, 2**70),
    st.sampled_from(["a", "b", None]),
    st.booleans(),
)


@given(st.lists(charges, max_size=20))
def test_totals_are_exact_and_survive_a_checkpoint(history: list[tuple[str, int, str | None, bool]]) -> None:
    ledger = Ledger()
    for purpose, amount, seed, pruned in history:
        ledger.charge(purpose, amount, {} if seed is None else {seed: amount // 3})
        if pruned and seed is not None:
            ledger.discard(seed)
        ledger = Ledger.load(ledger.state())
    assert ledger.total_macs == sum(amount for _, amount, _, _ in history)
    assert ledger.discarded_seed_macs + sum(ledger.of_seed.values()) == sum(
        amount // 3 for _, amount, seed, _ in history if seed is not None
    )


def test_a_damaged_state_is_refused() -> None:
    state = Ledger().state()
    del state["probe_macs"]
    with pytest.raises(DataError, match="probe_macs"):
        Ledger.load(state)
