"""Shared passes against whole ones: the same bits, less work, no trace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from configs import evaluated
from hypothesis import given
from hypothesis import strategies as st
from small_hosts import CASES, Pointwise, grow, put_seed, wrapped
from torch import Tensor, nn

from esper.kasmina.growing import GrowingModel
from esper.kasmina.replay import same
from esper.kasmina.trial import ForwardCall
from esper.leyline import AlphaConfig, SeedStage, UsageError


def whole_passes(model: GrowingModel, sample: Any, configs: Sequence[AlphaConfig]) -> list[Any]:
    """The slow reference: one plain pass per configuration."""
    outputs = []
    with torch.no_grad():
        for config in configs:
            with model.alphas(config):
                outputs.append(model(sample))
    return outputs


def powerset(slots: Sequence[str]) -> list[AlphaConfig]:
    return [
        {slot: alpha for slot, alpha in zip(slots, on, strict=True) if alpha is not None}
        for on in itertools.product((None, 0.0), repeat=len(slots))
    ]


@pytest.mark.parametrize("name", CASES)
def test_every_configuration_has_the_bits_of_a_whole_pass(name: str) -> None:
    model, sample = wrapped(name)
    grow(model)
    model.eval()
    configs = [*powerset(list(model.slots)), dict.fromkeys(model.slots, 1.0), {}]
    expected = whole_passes(model, sample, configs)

    found = evaluated(model, sample, configs)

    assert all(same(output, reference) for output, reference in zip(found.outputs, expected, strict=True))
    assert found.cost.runs == len(configs) - 1
    assert found.cost.passes <= found.cost.runs
    assert found.cost.shared is any(model.sharing.values())
    assert same(whole_passes(model, sample, [{}]), expected[:1])


@given(
    name=st.sampled_from(["branches", "residual", "structured"]),
    alphas=st.lists(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=3, max_size=3), max_size=6),
    live=st.sets(st.integers(0, 2)),
)
def test_any_set_of_configurations(name: str, alphas: list[list[float | None]], live: set[int]) -> None:
    model, sample = wrapped(name)
    slots = list(model.slots)
    for index in live & set(range(len(slots))):
        put_seed(model, slots[index], SeedStage.HOLDING, 0.3)
    model.eval()
    configs = [{slot: a for slot, a in zip(slots, row, strict=False) if a is not None} for row in alphas]
    found = evaluated(model, sample, configs)
    for output, reference in zip(found.outputs, whole_passes(model, sample, configs), strict=True):
        assert same(output, reference)


def test_sharing_is_proven_where_it_holds_and_only_there() -> None:
    assert all(wrapped(name)[0].sharing == dict.fromkeys(wrapped(name)[0].slots, True) for name in ("mlp", "residual"))
    assert wrapped("writer")[0].sharing == {"middle": False}


class Sneaky(nn.Module):
    """Looks like a chain, but what stands behind the slot reads what a module in front of it left lying about."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(self.middle(self.first(x))) + self.calls


def test_a_host_that_counts_its_passes_is_not_shared() -> None:
    model = GrowingModel.wrap(Pointwise(), ["blocks.0"], torch.randn(2, 1, 8, 8))
    assert model.sharing["blocks_0"]
    assert not GrowingModel.wrap(Sneaky(), ["middle"], torch.randn(2, 6)).sharing["middle"]


class Bumping(nn.Module):
    """Writes on what a module in front of the slot gave: a replay would do it a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).add_(1.0)
        return self.last(self.middle(h) + h)


def test_what_the_proof_refuses_would_give_other_bits() -> None:
    torch.manual_seed(0)
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(Bumping(), ["middle"], sample)
    assert model.sharing == {"middle": False}
    put_seed(model, "middle", SeedStage.HOLDING, 1.0)
    model.eval()
    expected = whole_passes(model, sample, [{}, {"middle": 0.0}])
    assert same(evaluated(model, sample, [{}, {"middle": 0.0}]).outputs, expected)
    model.sharing, model.macs_behind = {"middle": True}, {"middle": model.macs}
    assert not same(evaluated(model, sample, [{}, {"middle": 0.0}]).outputs, expected)


def test_work_is_what_was_measured() -> None:
    model, sample = wrapped("pointwise")
    grow(model)
    model.eval()
    slots = list(model.slots)
    one_out = evaluated(model, sample, [{}, *({slot: 0.0} for slot in slots)])
    assert one_out.cost.runs == 4 and one_out.cost.passes < 2.0
    all_eight = evaluated(model, sample, powerset(slots))
    assert all_eight.cost.runs == 8 and all_eight.cost.passes < 2.5
    assert evaluated(model, sample, [{}, {slots[0]: 0.6}, {}]).cost.runs == 2
    assert evaluated(model, sample, []).cost.passes == 0.0
    writer, sample = wrapped("writer")
    grow(writer)
    found = evaluated(writer, sample, [{}, {"middle": 0.0}])
    assert (found.cost.runs, found.cost.shared) == (2, False) and 1.0 < found.cost.passes < 2.0


def test_a_slot_without_a_seed_makes_no_difference() -> None:
    model, sample = wrapped("pointwise")
    found = evaluated(model, sample, powerset(list(model.slots)))
    assert found.cost.runs == 1 and found.cost.passes == 1.0


def test_modules_in_front_of_the_first_difference_run_once() -> None:
    model, sample = wrapped("pointwise")
    grow(model)
    counts = dict.fromkeys(model.sites, 0)
    for slot_id, site in model.sites.items():
        site[0].register_forward_hook(lambda *_, slot_id=slot_id: counts.__setitem__(slot_id, counts[slot_id] + 1))
    evaluated(model.eval(), sample, powerset(list(model.slots)))
    assert counts == {"blocks_0": 1, "blocks_1": 2, "blocks_2": 4}


class Fragile(nn.Module):
    """Raises when what it is given has changed, after having written a buffer and drawn a random number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.expected: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1.0)
        torch.rand(3)
        if self.expected is not None and not torch.equal(x, self.expected):
            raise ArithmeticError("boom")
        return x + 0.0 * self.seen


def test_an_exception_inside_leaves_no_trace() -> None:
    torch.manual_seed(0)
    fragile = Fragile()
    host = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), fragile, nn.Linear(8, 3))
    sample = torch.randn(4, 6)
    model = GrowingModel.wrap(host, ["0", "2"], sample)
    assert model.writes_buffers
    grow(model)
    model.train()
    model.host[1].eval()
    fragile.register_forward_pre_hook(lambda module, args: setattr(module, "expected", args[0].clone()))
    with torch.no_grad():
        model(sample)
    fragile._forward_pre_hooks.clear()
    model.host[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    slots = model.topology()
    random = torch.get_rng_state()

    with pytest.raises(ArithmeticError, match="boom"):
        evaluated(model, sample, powerset(list(model.slots)))

    assert same(dict(model.state_dict()), state)
    assert [module.training for module in model.modules()] == modes
    assert model.topology() == slots
    assert torch.equal(torch.get_rng_state(), random)
    assert all(tap.alpha is None and not tap.muted and tap.listener is None for tap in model.taps.values())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.is_grad_enabled()


def test_hosts_that_draw_random_numbers_see_the_same_ones_under_each_configuration() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 8), Noisy(), nn.Linear(8, 8), Noisy(), nn.Linear(8, 3))
    model = GrowingModel.wrap(host, ["0", "2"], torch.randn(4, 6))
    put_seed(model, "0", SeedStage.TRAINING)
    put_seed(model, "2", SeedStage.TRAINING)
    one, other, third = evaluated(model, torch.randn(4, 6), [{}, {"0": 0.0}, {"2": 0.0}]).outputs
    assert same(one, other) and same(one, third)


def test_a_tape_replays_what_it_recorded() -> None:
    model, sample = wrapped("residual")
    grow(model)
    model.eval()
    with model.record() as tape:
        output = model(sample)
    for slot_id in model.slots:
        assert tape.shared(slot_id)
        assert same(tape.replay(slot_id), output)
        with model.alphas({slot_id: 0.0}):
            assert same(tape.replay(slot_id, {slot_id: 0.0}), model(sample))
    with pytest.raises(UsageError, match="nothing was recorded"), model.record(["blocks_0"]) as tape:
        tape.replay("blocks_0")
    with pytest.raises(UsageError, match="unknown slot"), model.record(["block_0"]):
        pass


def test_a_tape_whose_tensors_were_written_is_not_used() -> None:
    model, sample = wrapped("mlp")
    grow(model)
    model.eval()
    with torch.no_grad(), model.record() as tape:
        model(sample)
        kept = next(iter(tape._taken.values()))[0]
        kept.zero_()
        assert not tape.shared("1")
        assert same(tape.replay("1"), model(sample))


def test_inference_mode_around_it_is_fine() -> None:
    model, sample = wrapped("pointwise")
    grow(model)
    model.eval()
    configs = powerset(list(model.slots))
    with torch.inference_mode():
        found = evaluated(model, sample.clone(), configs)
    for output, reference in zip(found.outputs, whole_passes(model, sample, configs), strict=True):
        assert same(output, reference)


def test_a_custom_call_is_shared_too() -> None:
    model, sample = wrapped("pointwise")
    grow(model)
    model.eval()
    configs = powerset(list(model.slots))
    call = ForwardCall({"x": sample, "y": 3}, lambda m, batch: m(batch["x"]).softmax(-1))
    found = evaluated(model, call, configs)
    for output, reference in zip(found.outputs, whole_passes(model, sample, configs), strict=True):
        assert same(output, reference.softmax(-1))
    assert found.cost.shared
    with pytest.raises(UsageError, match="unknown slot"):
        evaluated(model, sample, [{"blocks": 0.0}])
