"""A user's own loader: read again each epoch, checked in the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from esper.leyline import DataError, UsageError
from esper.tasks.loader import LoaderBatches, gather

GOOD = (torch.ones(3, 2), torch.zeros(3))


def dataset(count: int = 10) -> TensorDataset:
    return TensorDataset(torch.arange(float(count)).unsqueeze(1), torch.arange(count))


def test_a_data_loader_is_read_each_epoch_and_resumes_where_it_stood() -> None:
    loader = DataLoader(dataset(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    source = LoaderBatches(loader)
    assert len(source) == 3
    list(source.epoch())
    state = source.state()
    second = torch.cat([targets for _, targets in source.epoch()])
    source.load(state)
    assert torch.equal(second, torch.cat([targets for _, targets in source.epoch()]))
    assert sorted(second.tolist()) == list(range(10))


def test_a_plain_list_has_no_state() -> None:
    source = LoaderBatches([GOOD, GOOD])
    assert source.state() == {}
    source.load({})
    assert len(list(source.epoch())) == len(list(source.epoch())) == 2
    with pytest.raises(DataError, match="another kind"):
        source.load({"loader": torch.get_rng_state()})


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ((torch.tensor([[float("nan")]]), torch.zeros(1)), "batch 1 of the loader, inputs: 1 of 1"),
        ((torch.zeros(1, 1), torch.tensor([float("inf")])), "batch 1 of the loader, targets"),
        ((torch.zeros(2, 1), torch.zeros(3)), "batch 1 of the loader: 2 inputs but 3 targets"),
        ((torch.zeros(0, 1), torch.zeros(0)), "batch 1 of the loader: .* no example"),
        (torch.zeros(3), "batch 1 of the loader is a Tensor; a pair"),
        (
            ({"a": 1}, torch.zeros(1)),
            "batch 1 of the loader is .dict, Tensor. and cannot be made tensors: .* pack several",
        ),
    ],
)
def test_a_bad_batch_is_named(item: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(LoaderBatches([GOOD, item]).epoch())
    with pytest.raises(DataError):
        gather([GOOD, item])


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(UsageError, match="generator, which can be read only once"):
        LoaderBatches(item for item in [GOOD])
    with pytest.raises(UsageError, match="int; an iterable"):
        LoaderBatches(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no batch"):
        LoaderBatches([])


def test_a_loader_without_a_length_needs_the_number_of_batches() -> None:
    class Endless:
        def __iter__(self) -> Any:
            while True:
                yield GOOD

    with pytest.raises(UsageError, match="has no length"):
        LoaderBatches(Endless())
    assert len(list(LoaderBatches(Endless(), batches=4).epoch())) == 4
    with pytest.raises(DataError, match="gave 1 batches; 2 were announced"):
        list(LoaderBatches([GOOD], batches=2).epoch())


def test_gathering_joins_the_batches() -> None:
    whole = gather(DataLoader(dataset(), batch_size=4))
    assert whole.batches == (4, 4, 2)
    assert whole.targets.tolist() == list(range(10))
    with pytest.raises(DataError, match="do not fit together"):
        gather([GOOD, (torch.ones(1, 5), torch.zeros(1))])
    with pytest.raises(DataError, match="no batch"):
        gather([])
