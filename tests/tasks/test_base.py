"""Splits, data and budgets refuse what cannot be trained on, and say what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from esper.leyline import DataError, Metric, UsageError
from esper.tasks.base import Data, Split, TaskBudget, TaskSpec, check_task, digest_of
from esper.tasks.scoring import accuracy, cross_entropy
from esper.tasks.tree import require_finite


def split(count: int = 6, start: int = 0) -> Split:
    return Split(torch.arange(start, start + 4 * count, dtype=torch.float32).reshape(count, 4), torch.arange(count) % 3)


def spec() -> TaskSpec:
    return TaskSpec(
        name="toy",
        description="",
        metric=Metric("accuracy", "%", chance=33.3),
        host=lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)),
        sites={"hidden": "0"},
        blueprints=("norm",),
        loss=cross_entropy,
        score=accuracy,
        data=Data.of(split(), split(3), split(3), source="made up"),
        budget=TaskBudget(max_epochs=2, batch_size=2, lr=0.1),
    )


def test_a_split_counts_takes_and_moves_examples() -> None:
    whole = split()
    assert len(whole) == 6
    taken = whole.take(torch.tensor([4, 0]))
    assert torch.equal(taken.inputs, whole.inputs[[4, 0]])
    assert torch.equal(taken.targets, whole.targets[[4, 0]])
    assert whole.to("cpu").inputs is whole.inputs


@pytest.mark.parametrize(
    ("inputs", "targets", "says"),
    [
        (torch.zeros(0, 3), torch.zeros(0), "no example"),
        (torch.tensor(1.0), torch.tensor(1.0), "no example"),
        (torch.zeros(3, 2), torch.zeros(4), "3 inputs but 4 targets"),
        ([1.0], torch.zeros(1), "inputs are a list"),
    ],
)
def test_a_split_without_paired_examples_is_refused(inputs: object, targets: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Split(inputs, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_examples_are_named(bad: float) -> None:
    broken = split(3)
    broken.inputs[1, 2] = bad
    with pytest.raises(DataError, match=r"validation inputs: 1 of 3 examples hold NaN or infinity, the first is 1"):
        Data.of(split(), broken, split(), source="")


def test_huge_finite_values_are_not_taken_for_infinity() -> None:
    require_finite("x", torch.full((1000,), 3e38))
    require_finite("x", torch.arange(5))


def test_splits_must_hold_the_same_kind_of_example() -> None:
    other = Split(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(
        DataError, match=r"test inputs are float32 \(5,\) an example, but train inputs are float32 \(4,\)"
    ):
        Data.of(split(), split(), other, source="")


def test_the_digest_sees_values_order_shape_and_type() -> None:
    whole = split()
    others = [
        whole.take(torch.arange(5, -1, -1)),
        Split(whole.inputs.reshape(6, 2, 2), whole.targets),
        Split(whole.inputs, whole.targets.to(torch.int32)),
        Split(whole.inputs + 1e-6, whole.targets),
    ]
    digests = {digest_of(part) for part in (whole, *others)}
    assert len(digests) == 5
    assert digest_of(Split(whole.inputs.T.contiguous().T, whole.targets)) == digest_of(whole)


@pytest.mark.parametrize("wrong", [{"max_epochs": 0}, {"lr": -1.0}, {"weight_decay": -0.1}, {"lr": float("nan")}])
def test_a_budget_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TaskBudget(**({"max_epochs": 1, "batch_size": 1, "lr": 0.1} | wrong))  # type: ignore[arg-type]


def test_a_sound_task_passes_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    assert check_task(spec()).name == "toy"
    assert torch.equal(before, torch.get_rng_state())


def test_a_site_that_is_not_there_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(UsageError, match="unknown site of task 'toy' '00'; did you mean '0'"):
        check_task(replace(spec(), sites={"hidden": "00"}))


def test_a_task_needs_sites_and_blueprints() -> None:
    with pytest.raises(UsageError, match="names no site"):
        check_task(replace(spec(), sites={}))
    with pytest.raises(UsageError, match="names no blueprint"):
        check_task(replace(spec(), blueprints=()))


def test_a_host_that_cannot_take_the_data_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"the host cannot take inputs float32 \(4,\)"):
        check_task(replace(spec(), host=lambda: nn.Sequential(nn.Linear(7, 3))))


def test_a_loss_that_is_not_per_example_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loss gives shape \(\) for 2 examples"):
        check_task(replace(spec(), loss=lambda output, target: cross_entropy(output, target).mean()))


def test_a_split_is_read_in_batches_of_at_most_so_many() -> None:
    split = Split(torch.arange(14.0).reshape(7, 2), torch.arange(7))
    with split.reading(3) as batches:
        found = list(batches)
    assert [n for *_, n in found] == [3, 3, 1] and split.parts(3) == 3
    assert torch.equal(torch.cat([inputs for inputs, *_ in found]), split.inputs)
    with split.reading(None) as batches:
        assert [n for *_, n in batches] == [7] and split.parts(None) == 1
