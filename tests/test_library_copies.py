"""While a model grows: copies, averages and state dicts of model and optimizer."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.kasmina.portable import Grown
from esper.leyline import UsageError
from four_classes import EPOCHS
from own_loop import TRAIN, VALIDATION, epoch, steps
from test_library_leaving import started
from traces import ours

pytestmark = pytest.mark.usefixtures("without_figures")

INPUTS = VALIDATION[0][0]


def answer(model: nn.Module) -> torch.Tensor:
    before = model.training
    model.eval()
    with torch.no_grad():
        given: torch.Tensor = model(INPUTS)
    model.train(before)
    return given


@pytest.mark.parametrize(
    "name", ["encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain", "reached"))]
)
def test_copies_are_networks_of_their_own(name: str, tmp_path: Path) -> None:
    model, optimizer, grower = started(name, tmp_path)
    kept: list[tuple[nn.Module, torch.Tensor]] = []
    with grower:
        for _ in range(EPOCHS):
            epoch(grower, optimizer)
            twin = copy.deepcopy(model)
            with io.BytesIO() as file:
                torch.save(model, file)
                file.seek(0)
                read = torch.load(file, weights_only=False)
            now = answer(model)
            assert torch.equal(answer(twin), now) and torch.equal(answer(read), now)
            assert [n for n, _ in twin.named_parameters()] == [n for n, _ in model.named_parameters()]
            assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
            kept.append((twin, now))
        assert grower.view.slots[0].alpha == 1.0
    for twin, then in kept:
        assert torch.equal(answer(twin), then), "what the model did since is nothing to a copy"
        assert not ours(twin), "and nothing of ours is in it when the model was left"
    assert any(isinstance(module, Grown) for module in kept[-1][0].modules())


@pytest.mark.parametrize(
    "name", ["reached", *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain", "encoder"))]
)
def test_seeds_join_an_average(name: str, tmp_path: Path) -> None:
    """Against an average by name, by hand: of each parameter from the first step on at which it is there."""
    model, optimizer, grower = started(name, tmp_path)
    by_hand: dict[str, torch.Tensor] = {}

    def each() -> None:
        average.update_parameters(model)
        now = {name: parameter.detach() for name, parameter in model.named_parameters()}
        for gone in set(by_hand) - set(now):
            del by_hand[gone]
        for name, tensor in now.items():
            by_hand[name] = tensor.clone() if name not in by_hand else by_hand[name].lerp(tensor, 0.5)

    with grower:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        for _ in range(EPOCHS):
            steps(grower, optimizer, each=each)
            grower.after_epoch()
            averaged = dict(average.module.named_parameters())
            assert averaged.keys() == by_hand.keys()
            assert all(torch.allclose(averaged[name], by_hand[name], atol=1e-6) for name in by_hand)
        assert any(".seed." in name for name in by_hand), "a seed is there"
        live = answer(model)
        assert 0 < float((answer(average) - live).abs().max()), "and felt: the average is no copy"
    assert not ours(average)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, _ in average.module.named_parameters()] == names, "pairs are right after the run, too"
    for _ in range(60):
        average.update_parameters(model)
    assert torch.allclose(answer(average), answer(model), atol=1e-4)


def test_an_average_from_before_the_block_is_refused_once_a_seed_lives(tmp_path: Path) -> None:
    model, optimizer, grower = started("chain", tmp_path)
    early, unrelated = AveragedModel(model), AveragedModel(nn.Linear(2, 2))
    with grower:
        early.update_parameters(model)
        unrelated.update_parameters(nn.Linear(2, 2))
        grower.loss(*TRAIN[0]).backward()
        grower.after_backward()
        with pytest.raises(UsageError, match="made before the with block"):
            early.update_parameters(model)
        unrelated.update_parameters(nn.Linear(2, 2))
        grower.after_epoch()


@pytest.mark.slow
def test_timms_average_takes_parameters_or_is_refused(tmp_path: Path) -> None:
    utils = pytest.importorskip("timm.utils")
    model, optimizer, grower = started("chain", tmp_path)
    with grower:
        by_parameters = utils.ModelEmaV3(model, decay=0.5, exclude_buffers=True)
        by_state = utils.ModelEmaV3(model, decay=0.5)
        by_state.update(model)
        for _ in range(EPOCHS):
            steps(grower, optimizer, each=lambda: by_parameters.update(model))
            grower.after_epoch()
        assert len(list(by_parameters.module.parameters())) == len(list(model.parameters())) > 6
        for _ in range(60):
            by_parameters.update(model)
        assert torch.allclose(answer(by_parameters.module), answer(model), atol=1e-4)
        with pytest.raises(UsageError, match="exclude_buffers=True"):
            by_state.update(model)


def saved(*states: Any) -> list[Any]:
    with io.BytesIO() as file:
        torch.save(states, file)
        file.seek(0)
        return list(torch.load(file, weights_only=True))


@pytest.mark.parametrize("order", ["model first", "growth first"])
def test_state_dicts_are_the_hosts_alone_and_load_in_any_order(order: str, tmp_path: Path) -> None:
    model, optimizer, grower = started("reached", tmp_path)
    expected: list[torch.Tensor] = []
    state: list[Any] = []
    fresh, _, _ = started("reached", tmp_path / "fresh")
    with grower:
        for number in range(EPOCHS):
            epoch(grower, optimizer)
            if number == 4:
                assert grower.view.slots[0].live
                takers = [model.state_dict, grower.state_dict]
                taken = [take() for take in (takers if order == "model first" else takers[::-1])]
                host, growth = taken if order == "model first" else taken[::-1]
                state = saved(host, optimizer.state_dict(), growth)
                expected.append(answer(model))
        expected.append(answer(model))
    host, optimized, growth = state
    assert list(host) == list(fresh.state_dict())
    again, second, other = started("reached", tmp_path)
    again.load_state_dict(host)  # where it is loaded before, plain torch loads it
    second.load_state_dict(optimized)
    assert len(second.param_groups) == 1
    other.load_state_dict(growth)
    with other as resumed:
        assert torch.equal(answer(again), expected[0])
        again.load_state_dict(host)  # nothing changes, and nothing is warned of
        second.load_state_dict(optimized)
        assert torch.equal(answer(again), expected[0]) and len(second.param_groups) == 2
        for _ in range(resumed.view.epoch, EPOCHS):
            epoch(resumed, second)
        assert torch.equal(answer(again), expected[1])


def test_a_checkpoint_that_lacks_what_grows_is_told_once(tmp_path: Path) -> None:
    model, optimizer, grower = started("chain", tmp_path)
    with grower:
        model.state_dict()  # nothing grows yet
        grower.loss(*TRAIN[0]).backward()
        grower.after_backward()
        early = copy.deepcopy(model.state_dict())
        optimizer.step()
        with pytest.warns(UserWarning, match=r"save grower.state_dict\(\) beside it") as told:
            epoch(grower, optimizer)
        assert [Path(warning.filename).name for warning in told] == ["own_loop.py"]
        model.state_dict()
        epoch(grower, optimizer)  # not again
        with pytest.warns(UserWarning, match="changes the host alone; seeds stay as they are in 1"):
            model.load_state_dict(early)
        model.load_state_dict(early)
        with pytest.raises(UsageError, match="2 parameter groups, and the model 1 without"):
            optimizer.load_state_dict({**optimizer.state_dict(), "param_groups": [{"params": []}] * 2})


def test_copies_and_averages_warn_of_nothing(tmp_path: Path) -> None:
    model, optimizer, grower = started("chain", tmp_path)
    with grower, warnings.catch_warnings():
        warnings.simplefilter("error")
        average = AveragedModel(model)
        for _ in range(3):
            steps(grower, optimizer, each=lambda: average.update_parameters(model))
            grower.after_epoch()
            copy.deepcopy(model).state_dict()
            grower.state_dict()
