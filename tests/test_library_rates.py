"""Learning rates of seeds in a loop of one's own: always a multiple of what the parameters around them have now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from esper.leyline import Blend, Decision, EnvSpec, EnvView, FactoredAction, Op, SeedStage
from esper.library import Budget, Grower, OwnChoices, grow
from esper.tolaria.engine import ModuleEngine
from esper.tolaria.surgery import host_groups, seed_groups
from four_classes import SHORT
from own_loop import LOSS, TRAIN, VALIDATION, narrow, steps

pytestmark = pytest.mark.usefixtures("without_figures")


class Late:
    """Germinates one seed after ``start`` epochs."""

    name = "late"

    def __init__(self, start: int) -> None:
        self.start = start

    def reset(self, specs: list[EnvSpec]) -> None:
        pass

    def decide(self, views: list[EnvView]) -> list[Decision]:
        (view,) = views
        slot = view.slots[0]
        born = view.epoch >= self.start and slot.stage is SeedStage.DORMANT
        action = FactoredAction(Op.GERMINATE, slot.slot_id, "mlp", Blend.LINEAR, 1.0, 1)
        return [Decision(action if born else FactoredAction(), "it is time")]


Rates = list[tuple[float, float | None]]


def course(
    where: Path,
    optimizer_of: Callable[[nn.Sequential], Optimizer],
    scheduler_of: Callable[[Optimizer], Any],
    **how: Any,
) -> Rates:
    """Rates of the last host group and of the seed (``None`` without one) at each step of the optimizer."""
    model = narrow()
    optimizer = optimizer_of(model)
    scheduler, told = scheduler_of(optimizer), []
    choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=6, parameters=10_000, gates=SHORT))
    grower = Grower(
        model, optimizer, val=VALIDATION, choices=choices, policy=Late(how["start"]), run_dir=where / how["by"]
    )

    def tell() -> None:
        seeds = seed_groups(optimizer)
        told.append((host_groups(optimizer)[-1]["lr"], next(iter(seeds.values()))["lr"] if seeds else None))

    with grower:
        for _ in range(6):
            steps(grower, optimizer, TRAIN[:2], each=tell)
            grower.after_epoch()
            if how["by"] == "hand":
                scheduler.step()
            else:
                grower.step_scheduler(scheduler)
    assert scheduler.optimizer is optimizer
    return told


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "scheduler_of",
    [
        lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.1),
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3)),
    ],
    ids=["steps", "warm-up"],
)
@pytest.mark.parametrize("start", [0, 4])
def test_a_seed_has_the_multiple_of_the_hosts_rate_now_whoever_steps(
    scheduler_of: Callable[[Optimizer], Any], start: int, tmp_path: Path
) -> None:
    by_hand, by_us = (course(tmp_path, sgd, scheduler_of, start=start, by=by) for by in ("hand", "grower"))
    assert by_hand == by_us
    reference = sgd(narrow())
    scheduler = scheduler_of(reference)
    for step, (host, seed) in enumerate(by_hand):
        if step and step % 2 == 0:
            reference.step()
            scheduler.step()
        assert host == reference.param_groups[0]["lr"]
        assert (seed is None) == (step < 2 * start)
        assert seed is None or seed == pytest.approx(2.0 * host, abs=1e-12)
    assert {host for host, _ in by_hand} != {by_hand[0][0]}, "the schedule moved"


def test_a_first_group_that_stands_still_gives_no_seed_its_rate(tmp_path: Path) -> None:
    def halves(model: nn.Sequential) -> Optimizer:
        groups = [{"params": model[:4].parameters(), "lr": 0.0}, {"params": model[4].parameters(), "lr": 0.05}]
        return torch.optim.SGD(groups)

    told = course(tmp_path, halves, lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0), start=0, by="hand")
    assert all(seed == pytest.approx(0.1) for _, seed in told)


def test_grow_takes_rates_from_where_a_scheduler_has_brought_them(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    model = narrow()
    groups = [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 0.02}]
    optimizer = Watching(groups, lr=0.1, weight_decay=0.01)
    optimizer.param_groups[0]["weight_decay"] = 0.3
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.step()
    scheduler.step()
    seen.clear()
    grow(
        model,
        train=TRAIN,
        val=VALIDATION,
        loss=LOSS,
        optimizer=optimizer,
        at=["1"],
        policy=Late(1),
        budget=Budget(epochs=3, parameters=10_000, gates=SHORT),
        run_dir=tmp_path / "run",
    )
    assert seen[0] == pytest.approx([0.01, 0.002]) and seen[-1] == pytest.approx([0.01, 0.002, 0.02])


def test_a_rollback_leaves_the_schedule_where_it_is(tmp_path: Path) -> None:
    model = narrow()
    optimizer = sgd(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    choices = OwnChoices(LOSS, at=["1"], budget=Budget(epochs=6, parameters=10_000, gates=SHORT))
    rates = []
    with Grower(model, optimizer, val=VALIDATION, choices=choices, policy=Late(0), run_dir=tmp_path / "run") as grower:
        assert isinstance(grower._engine, ModuleEngine)
        for epoch in range(4):
            steps(grower, optimizer)
            if epoch == 2:
                with torch.no_grad():
                    model[4].weight.fill_(torch.nan)
            scheduler.step()
            assert grower.after_epoch().rolled_back is (epoch == 2)
            rates.append([group["lr"] for group in optimizer.param_groups])
    assert [each[0] for each in rates] == pytest.approx([0.05, 0.025, 0.0125, 0.00625])
    assert rates[2][1] == pytest.approx(0.025), "and the seed that was brought back follows it"
