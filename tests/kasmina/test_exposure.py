"""Seeds among the parameters of the module that they grow in."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from small_hosts import CASES, put_seed, wrapped
from torch import Tensor, nn

from esper.kasmina.export import export
from esper.kasmina.growing import GrowingModel
from esper.kasmina.incubation import probe_backward
from esper.leyline import SeedStage


def grown(name: str = "residual") -> tuple[GrowingModel, Tensor]:
    model, sample = wrapped(name)
    put_seed(model, next(iter(model.slots)), SeedStage.TRAINING)
    return model, sample


def ids(parameters: object) -> set[int]:
    return {id(parameter) for parameter in parameters}  # type: ignore[attr-defined]


def test_whoever_asks_the_host_or_a_module_around_the_site_is_given_the_seed() -> None:
    model, _ = grown()
    host, seeds = model.host, ids(model.seed_parameters("blocks_0"))
    bare, inside = ids(host.parameters()), ids(host.blocks.parameters())
    with model.exposed():
        assert ids(host.parameters()) == bare | seeds
        assert ids(host.blocks.parameters()) == inside | seeds
        assert ids(host.blocks[0].parameters()) >= seeds and not ids(host.head.parameters()) & seeds
        assert ids(model.host_parameters()) == bare, "what is ours to count stays the host's alone"
        assert len(list(model.parameters())) == len(bare | seeds), "and nothing is counted twice"
        names = [name for name, _ in host.named_parameters()]
        assert len(names) == len(set(names)) and sum(name.startswith("blocks.0.seed.") for name in names) == len(seeds)
    assert ids(host.parameters()) == bare
    assert "named_modules" not in host.__dict__


def test_clipping_and_zeroing_reach_the_seed() -> None:
    model, _ = grown("mlp")
    with model.exposed():
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        nn.utils.clip_grad_norm_(model.host.parameters(), 1.0)
        total = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        assert float(total) == pytest.approx(1.0, rel=1e-5)
        model.host.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_seed_that_comes_later_is_there_and_one_that_went_is_not() -> None:
    model, _ = wrapped("mlp")
    with model.exposed():
        bare = len(list(model.host.parameters()))
        put_seed(model, "1", SeedStage.TRAINING)
        assert len(list(model.host.parameters())) == bare + len(list(model.seed_parameters("1")))
        model.slots["1"].prune("for the test")
        assert len(list(model.host.parameters())) == bare


def test_a_module_around_the_host_is_answered_too_and_the_hosts_own_come_first() -> None:
    model, _ = grown("mlp")
    around = nn.Sequential(model.host, nn.Linear(2, 2))
    bare = [id(parameter) for parameter in model.host.parameters()]
    with model.exposed():
        seeds = ids(model.seed_parameters("1"))
        assert ids(around.parameters()) >= seeds
        assert [id(parameter) for parameter in model.host.parameters()][: len(bare)] == bare
        assert {type(module) for module in model.host.modules()} >= {type(model.slots["1"].seed)}


def test_a_copy_and_an_export_answer_for_themselves() -> None:
    model, sample = wrapped("mlp")
    put_seed(model, "3", SeedStage.HOLDING, 0.5)
    put_seed(model, "1", SeedStage.TRAINING)
    with model.exposed():
        before, names = ids(model.host.parameters()), [name for name, _ in model.host.named_parameters()]
        plain = export(model)
        twin = copy.deepcopy(model.host)
        again = copy.deepcopy(twin)
        with io.BytesIO() as file:
            torch.save(twin, file)
            file.seek(0)
            read = torch.load(file, weights_only=False)
        expected = model(sample)
    assert not any("named_modules" in module.__dict__ for module in plain.modules())
    for each in (twin, again, read):
        assert [name for name, _ in each.named_parameters()] == names and not ids(each.parameters()) & before
        assert torch.equal(each(sample), expected)


def test_a_penalty_on_the_models_parameters_is_no_second_one_in_the_second_pass() -> None:
    model, sample = grown("mlp")
    slot = next(iter(model.slots))

    def penalty(output: Tensor) -> Tensor:
        return output.sum() * 0.0 + sum(parameter.square().sum() for parameter in model.host.parameters())

    with model.exposed():
        with model.record() as tape:
            loss = penalty(model(sample))
        torch.autograd.backward(loss)
        probe_backward(model, tape, penalty, slot)
        for parameter in model.seed_parameters(slot):
            assert torch.allclose(parameter.grad, 2 * parameter.detach())


def test_every_kind_of_host_can_be_asked() -> None:
    for name in CASES:
        model, _ = wrapped(name)
        bare = [name for name, _ in model.host.named_parameters()]
        with model.exposed():
            assert [name for name, _ in model.host.named_parameters()] == bare
