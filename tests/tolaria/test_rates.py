"""What seeds take from the parameters around them, and schedulers that somebody else steps."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from esper.leyline import UsageError
from esper.tolaria import rates
from esper.tolaria.rates import MULTIPLE, Schedulers, follow, host_rates_kept, inherited, neighbour
from esper.tolaria.surgery import BASE_RATE, HOST_GROUP, add_seed_group, seed_groups


def host() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), block, nn.Linear(4, 2))


def joined(optimizer: Optimizer, number: int, multiple: float = 2.0, slot: str = "a") -> dict[str, Any]:
    """A seed that follows the host's group ``number``."""
    group = add_seed_group(optimizer, slot, nn.Linear(4, 4).named_parameters(), **inherited(optimizer, number))
    group |= {HOST_GROUP: number, MULTIPLE: multiple}
    follow(optimizer)
    return group


def test_a_site_belongs_to_the_group_of_the_parameters_around_it() -> None:
    model = host()
    optimizer = AdamW([{"params": model[part].parameters(), "lr": 0.1} for part in (0, 2, 3)])
    found = {path: neighbour(optimizer, model, path) for path in ("0", "1", "2", "2.0", "2.2", "3")}
    assert found == {"0": 0, "1": 0, "2": 1, "2.0": 1, "2.2": 1, "3": 2}


def test_norms_and_biases_without_decay_are_not_what_a_seed_is_like() -> None:
    model = host()
    flat = [p for p in model.parameters() if p.ndim == 1]
    weights = [p for p in model.parameters() if p.ndim > 1]
    optimizer = AdamW([{"params": flat, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.3}], lr=0.1)
    assert [neighbour(optimizer, model, path) for path in ("1", "2", "2.2")] == [1, 1, 1]
    assert inherited(optimizer, 1)["weight_decay"] == 0.3


def test_groups_that_stand_still_are_passed_over_but_a_warm_up_is_not() -> None:
    model = host()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters(), "lr": 0.1}]
    frozen = SGD(groups, lr=0.1)
    assert neighbour(frozen, model, "1") == 1 and neighbour(frozen, model, "0") == 1

    model = host()
    warming = SGD([{"params": model[0].parameters()}, {"params": model[2:].parameters()}], lr=0.1)
    lr_scheduler.LambdaLR(warming, lambda step: step / 4)
    assert [group["lr"] for group in warming.param_groups] == [0.0, 0.0]
    assert neighbour(warming, model, "1") == 0

    model = host()
    partial = SGD([{"params": model[2:].parameters()}], lr=0.1)
    assert neighbour(partial, model, "0") == 0, "the nearest behind it, where nothing before it learns"


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "warm-up from 0": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5)),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.1),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 12),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=14),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "in turn": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.8)], milestones=[4]
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.8)]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_schedulers_own_step_moves_the_host_as_without_seeds_and_seeds_follow(make: Callable[[Any], Any]) -> None:
    def course(grows: bool) -> list[tuple[float, ...]]:
        model = host()
        groups = [{"params": model[0].parameters()}, {"params": model[2:].parameters(), "lr": 0.02}]
        optimizer = SGD(groups, lr=0.05, momentum=0.9)
        scheduler, told = make(optimizer), []
        schedulers = Schedulers(optimizer)
        arguments = (1.0,) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else ()
        for step in range(12):
            if grows and step == 3:
                joined(optimizer, 1, multiple=3.0)
                schedulers.shield()
            optimizer.step()
            scheduler.step(*arguments)
            follow(optimizer)
            told.append(tuple(group[key] for key in ("lr", "momentum") for group in optimizer.param_groups))
        schedulers.release()
        assert scheduler.optimizer is optimizer
        return told

    plain, grown = course(grows=False), course(grows=True)
    assert len({round(told[0], 9) for told in plain}) > 1
    for step, (without, having) in enumerate(zip(plain, grown, strict=True)):
        if step < 3:
            assert having == without
            continue
        assert (*having[:2], *having[3:5]) == without
        assert having[2] == pytest.approx(3.0 * having[1]) and having[5] == having[4]


def test_without_a_shield_a_schedulers_own_step_fails() -> None:
    optimizer = SGD(host().parameters(), lr=0.05)
    scheduler = SCHEDULERS["lambda"](optimizer)
    joined(optimizer, 0)
    optimizer.step()
    with pytest.raises(ValueError, match="zip"):
        scheduler.step()


def test_a_shielded_scheduler_is_saved_and_copied_like_any_other() -> None:
    optimizer = SGD(host().parameters(), lr=0.05)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    other = lr_scheduler.StepLR(SGD(host().parameters(), lr=0.05), 2)
    joined(optimizer, 0)
    schedulers = Schedulers(optimizer)
    schedulers.shield()
    assert other.optimizer.__class__ is SGD, "another optimizer's scheduler is left alone"
    assert copy.deepcopy(scheduler.state_dict()).keys() == lr_scheduler.StepLR(optimizer, 2).state_dict().keys()
    assert copy.deepcopy(scheduler).optimizer.param_groups[0]["lr"] == 0.05
    assert type(scheduler.optimizer).__name__ == "SGD", "monitors show the name of the class"
    schedulers.release()
    assert scheduler.optimizer is optimizer
    late = lr_scheduler.StepLR(optimizer, 2)
    with pytest.raises(UsageError, match="counts 2 parameter groups for the model's 1"):
        schedulers.add(late)
    del late
    gc.collect()


@pytest.mark.parametrize("make", [lambda p: Adam(p, lr=torch.tensor(0.1)), lambda p: Adam(p, lr=0.1)])
def test_rates_and_betas_follow_a_hand_that_moves_them(make: Callable[[Any], Optimizer]) -> None:
    model = host()
    optimizer = make(model.parameters())
    group = joined(optimizer, 0, multiple=0.5)
    optimizer.param_groups[0].update(lr=0.04, betas=(0.8, 0.95), weight_decay=0.1)
    follow(optimizer)
    assert float(group["lr"]) == pytest.approx(0.02)
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.95), 0.1)


def test_a_seed_that_follows_nobody_is_left_alone() -> None:
    optimizer = SGD(host().parameters(), lr=0.1)
    add_seed_group(optimizer, "a", nn.Linear(4, 4).named_parameters(), lr=0.7)
    optimizer.param_groups[0]["lr"] = 0.01
    follow(optimizer)
    assert seed_groups(optimizer)["a"]["lr"] == 0.7


def test_what_somebody_else_set_outlives_a_load() -> None:
    optimizer = SGD(host().parameters(), lr=0.1)
    group = joined(optimizer, 0)
    with host_rates_kept(optimizer):
        optimizer.param_groups[0].update(lr=9.0, momentum=0.5)
        optimizer.param_groups[0][BASE_RATE] = 9.0
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.1, 0.0)
    assert group["lr"] == pytest.approx(0.2)


def test_the_optimizer_inside_a_wrapper_is_the_one_that_steps() -> None:
    class Wrapper(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    inner = SGD(host().parameters(), lr=0.1)
    assert rates.innermost(Wrapper(Wrapper(inner))) is inner
