"""Optimizer surgery: what was there before an insertion or removal stays bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from esper.leyline import DataError, UsageError
from esper.tolaria.surgery import (
    SEED,
    OptimizerState,
    add_seed_group,
    host_groups,
    load_named_state,
    named_state,
    remove_seed_group,
    seed_groups,
    set_rates,
)

Make = Callable[[Iterable[Any]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    f"{name}-{'foreach' if foreach else 'single'}": lambda p, make=make, foreach=foreach, options=options: make(
        p, lr=0.05, foreach=foreach, weight_decay=0.01, **options
    )
    for name, make, options in (
        ("sgd", SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", Adam, {}),
        ("amsgrad", Adam, {"amsgrad": True}),
        ("adamw", AdamW, {}),
    )
    for foreach in (False, True)
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def host() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def seed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(5, 5)


def gradients(module: nn.Module, step: int) -> None:
    """Made-up gradients, the same for the same step."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(optimizer: Optimizer, modules: Iterable[nn.Module], steps: range) -> None:
    for step in steps:
        for module in modules:
            gradients(module, step)
        optimizer.step()


def bits(optimizer: Optimizer, module: nn.Module) -> list[bytes]:
    """Weights and optimizer state of ``module``, byte for byte."""
    found = []
    for parameter in module.parameters():
        found.append(parameter.detach().numpy().tobytes())
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            found.append(
                key.encode() + (value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
            )
    return found


@every_optimizer
def test_old_parameters_do_not_notice_a_seed(make: Make) -> None:
    alone, grown, newcomer = host(), host(), seed()
    reference, optimizer = make(alone.parameters()), make(grown.parameters())
    train(reference, [alone], range(3))
    train(optimizer, [grown], range(3))

    before = bits(optimizer, grown)
    add_seed_group(optimizer, "r1", newcomer.named_parameters(), lr=0.2)
    assert bits(optimizer, grown) == before
    for step in range(3, 6):
        train(reference, [alone], range(step, step + 1))
        train(optimizer, [grown, newcomer], range(step, step + 1))
        assert bits(optimizer, grown) == bits(reference, alone)

    before = bits(optimizer, grown)
    remove_seed_group(optimizer, "r1")
    assert bits(optimizer, grown) == before
    train(reference, [alone], range(6, 9))
    train(optimizer, [grown], range(6, 9))
    assert bits(optimizer, grown) == bits(reference, alone)


@every_optimizer
def test_removal_takes_exactly_its_own(make: Make) -> None:
    body, first, second = host(), seed(), seed()
    optimizer = make(body.parameters())
    add_seed_group(optimizer, "a", first.named_parameters())
    add_seed_group(optimizer, "b", second.named_parameters())
    train(optimizer, [body, first, second], range(2))
    kept = bits(optimizer, body), bits(optimizer, second)

    remove_seed_group(optimizer, "a")
    assert (bits(optimizer, body), bits(optimizer, second)) == kept
    assert list(seed_groups(optimizer)) == ["b"]
    assert set(optimizer.state) == {*body.parameters(), *second.parameters()}
    assert len(host_groups(optimizer)) == 1


@pytest.mark.parametrize("mutant", ["rebuilt", "state dict", "host group"])
def test_other_ways_to_add_a_seed_are_noticed(mutant: str) -> None:
    """The comparison above must fail for what people do instead: lost momentum, shifted state, a shared rate."""
    alone, grown, newcomer = host(), host(), seed()
    reference = SGD(alone.parameters(), lr=0.1, momentum=0.9)
    optimizer = SGD(grown.parameters(), lr=0.1, momentum=0.9)
    train(reference, [alone], range(3))
    train(optimizer, [grown], range(3))
    if mutant == "host group":
        optimizer.param_groups[0]["params"] += list(newcomer.parameters())
        set_rates(optimizer, 0.5, {})
    else:
        old = optimizer.state_dict()
        optimizer = SGD([*newcomer.parameters(), *grown.parameters()], lr=0.1, momentum=0.9)
        if mutant == "state dict":
            old["param_groups"][0]["params"] = list(range(6))
            optimizer.load_state_dict({**old, "state": {i + 2: entry for i, entry in old["state"].items()}})
            optimizer.state[grown[0].bias] = {"momentum_buffer": torch.zeros(5)}
    train(reference, [alone], range(3, 4))
    train(optimizer, [grown, newcomer], range(3, 4))
    assert bits(optimizer, grown) != bits(reference, alone)


@every_optimizer
def test_state_survives_a_rebuilt_optimizer(make: Make) -> None:
    def build() -> tuple[nn.ModuleDict, Optimizer]:
        model = nn.ModuleDict({"host": host(), "a": seed(), "b": seed()})
        return model, make(model["host"].parameters())

    model, optimizer = build()
    train(optimizer, [model["host"]], range(2))
    add_seed_group(optimizer, "a", model["a"].named_parameters(), lr=0.2)
    train(optimizer, [model["host"], model["a"]], range(2, 4))
    add_seed_group(optimizer, "b", model["b"].named_parameters(), lr=0.3)
    set_rates(optimizer, 0.5, {"a": 0.25, "b": 1.0})
    state = named_state(optimizer, model.named_parameters())

    other, rebuilt = build()
    other.load_state_dict(model.state_dict())
    add_seed_group(rebuilt, "b", other["b"].named_parameters())
    add_seed_group(rebuilt, "a", other["a"].named_parameters())
    load_named_state(rebuilt, other.named_parameters(), state)
    assert [group.get(SEED) for group in rebuilt.param_groups] == [None, "a", "b"]
    assert [group["lr"] for group in rebuilt.param_groups] == [0.025, 0.05, 0.3]
    train(optimizer, list(model.children()), range(4, 7))
    train(rebuilt, list(other.children()), range(4, 7))
    assert bits(rebuilt, other) == bits(optimizer, model)


def copied(state: OptimizerState) -> OptimizerState:
    """Of what trains on."""
    return OptimizerState({name: tensor.clone() for name, tensor in state.tensors.items()}, state.plain)


def test_loading_forgets_what_came_after() -> None:
    model = host()
    optimizer = Adam(model.parameters(), lr=0.1)
    fresh = named_state(optimizer, model.named_parameters())
    train(optimizer, [model], range(1))
    state = copied(named_state(optimizer, model.named_parameters()))
    train(optimizer, [model], range(1, 3))

    load_named_state(optimizer, model.named_parameters(), state)
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [1, 1, 1, 1]
    load_named_state(optimizer, model.named_parameters(), fresh)
    assert not optimizer.state


def test_memory_layout_follows_the_parameter() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(optimizer, [model], range(2))
    state = named_state(optimizer, model.named_parameters())
    packed = OptimizerState({k: v.contiguous() for k, v in state.tensors.items()}, state.plain)
    load_named_state(optimizer, model.named_parameters(), packed)
    assert optimizer.state[model.weight]["momentum_buffer"].stride() == model.weight.stride()


def test_tensor_learning_rates_and_named_parameters() -> None:
    model, newcomer = host(), seed()
    optimizer = Adam(model.named_parameters(), lr=torch.tensor(0.1))
    add_seed_group(optimizer, "r1", [(f"seed.{n}", p) for n, p in newcomer.named_parameters()], lr=torch.tensor(0.4))
    set_rates(optimizer, 0.5, {"r1": 0.25})
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [float(rate) for rate in rates] == pytest.approx([0.05, 0.1])
    assert optimizer.param_groups[1]["param_names"] == ["seed.weight", "seed.bias"]

    names = [*model.named_parameters(), *newcomer.named_parameters(prefix="seed")]
    state = copied(named_state(optimizer, names))
    set_rates(optimizer, 1.0, {"r1": 1.0})
    load_named_state(optimizer, names, state)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)


def test_rates_are_factors_of_each_groups_base() -> None:
    model, newcomer = host(), seed()
    optimizer = SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.01}], lr=0.1)
    add_seed_group(optimizer, "r1", newcomer.named_parameters(), lr=0.4)
    for _ in range(2):
        set_rates(optimizer, 0.5, {"r1": 0.25})
        assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005, 0.1]


def test_refusals_leave_the_optimizer_alone() -> None:
    model, newcomer = host(), seed()
    optimizer = SGD(model.parameters(), lr=0.1)
    frozen = seed().requires_grad_(False)
    for message, call in (
        ("no parameter that requires a gradient", lambda: add_seed_group(optimizer, "a", frozen.named_parameters())),
        ("did you mean 'momentum'", lambda: add_seed_group(optimizer, "a", newcomer.named_parameters(), momentun=0.9)),
        ("more than one parameter group", lambda: add_seed_group(optimizer, "a", model.named_parameters())),
        ("unknown seed with a parameter group 'a'", lambda: remove_seed_group(optimizer, "a")),
    ):
        with pytest.raises(UsageError, match=message):
            call()
        assert len(optimizer.param_groups) == 1
    add_seed_group(optimizer, "a", newcomer.named_parameters())
    with pytest.raises(UsageError, match="already has a parameter group"):
        add_seed_group(optimizer, "a", seed().named_parameters())
    with pytest.raises(UsageError, match="single parameter group"):
        add_seed_group(torch.optim.LBFGS(host().parameters()), "a", newcomer.named_parameters())


def test_state_that_does_not_fit_changes_nothing() -> None:
    model, newcomer = host(), seed()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(optimizer, [model], range(2))
    names = list(model.named_parameters())
    state = named_state(optimizer, names)
    before = bits(optimizer, model)

    with pytest.raises(DataError, match="SGD cannot be loaded into Adam"):
        load_named_state(Adam(model.parameters()), names, state)
    renamed = [(f"old.{name}", parameter) for name, parameter in names]
    with pytest.raises(DataError, match=r"group 0 of the optimizer differs in 0\.bias"):
        load_named_state(optimizer, renamed, state)
    torn = OptimizerState({k: v for k, v in state.tensors.items() if "2.bias" not in k}, state.plain)
    with pytest.raises(DataError, match=r"state/2\.bias/momentum_buffer is missing"):
        load_named_state(optimizer, names, torn)
    assert bits(optimizer, model) == before

    add_seed_group(optimizer, "r1", newcomer.named_parameters())
    with pytest.raises(DataError, match="has 1 parameter groups, this one 2"):
        load_named_state(optimizer, names, state)
    with pytest.raises(DataError, match="without a name"):
        named_state(optimizer, names)


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "step", "reload"]), st.sampled_from("abc")), max_size=12))
def test_any_history_of_surgery_leaves_the_host_alone(history: list[tuple[str, str]]) -> None:
    alone, grown = host(), host()
    seeds: dict[str, nn.Module] = {}
    reference, optimizer = AdamW(alone.parameters(), lr=0.05), AdamW(grown.parameters(), lr=0.05)
    for step, (what, slot) in enumerate(history):
        if what == "add" and slot not in seeds:
            seeds[slot] = seed()
            add_seed_group(optimizer, slot, seeds[slot].named_parameters())
        elif what == "remove" and slot in seeds:
            remove_seed_group(optimizer, slot)
            del seeds[slot]
        elif what == "step":
            train(reference, [alone], range(step, step + 1))
            train(optimizer, [grown, *seeds.values()], range(step, step + 1))
        elif what == "reload":
            model = nn.ModuleDict({"host": grown, **seeds})
            load_named_state(optimizer, model.named_parameters(), named_state(optimizer, model.named_parameters()))
        assert bits(optimizer, grown) == bits(reference, alone)
        assert set(seed_groups(optimizer)) == set(seeds)
        owners = {*grown.parameters(), *(p for module in seeds.values() for p in module.parameters())}
        assert set(optimizer.state) <= owners
