"""A user's own loader: read again each epoch, checked in the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from esper.leyline import DataError, UsageError
from esper.tasks.loader import LoadedSplit, LoaderBatches, Unpacking

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
        ((torch.tensor([[float("nan")]]), torch.zeros(1)), "inputs: 1 of 1"),
        ((torch.zeros(1, 1), torch.tensor([float("inf")])), "targets"),
        (({"a": torch.ones(2), "b": [torch.full((2, 1), torch.nan)]}, torch.zeros(2)), r"inputs\['b'\]\[0\]: 2 of 2"),
        ((torch.zeros(2, 1), torch.zeros(3)), "2 inputs but 3 targets"),
        ((torch.zeros(0, 1), torch.zeros(0)), "no example"),
        (torch.zeros(3), "a Tensor; a pair .* unpack=lambda"),
        (
            (torch.zeros(1), torch.zeros(1), torch.zeros(1)),
            r"a tuple of 3 parts; a pair .* \(\(batch\[0\], batch\[1\]\)",
        ),
        ({"ids": torch.zeros(1), "labels": torch.zeros(1)}, r"a dict of ids, labels; .*batch\['labels'\].* loss=None"),
    ],
)
def test_a_bad_batch_is_named(item: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"batch 1 of the loader.*{says}") as refusal:
        list(LoaderBatches([GOOD, item]).epoch())
    assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match=f"batch 1 of validation.*{says}"):
        split([GOOD, item])


def split(loader: Any, unpacking: Unpacking | None = None) -> LoadedSplit:
    return LoadedSplit("validation", loader, unpacking or Unpacking(), "cpu")


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(UsageError, match="generator, which can be read only once"):
        LoaderBatches(item for item in [GOOD])
    with pytest.raises(UsageError, match="generator, which can be read only once"):
        split(item for item in [GOOD])
    with pytest.raises(UsageError, match="int; an iterable"):
        LoaderBatches(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no batch"):
        LoaderBatches([])
    with pytest.raises(DataError, match="no batch"):
        split([])

    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rest = iter([GOOD])

        def __iter__(self) -> Any:
            return self.rest

    with split(Once()).reading(None) as batches, pytest.raises(DataError, match="can be read only once"):
        next(batches)


class Numbers(IterableDataset[Any]):
    """``count`` examples, one after another; no length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return ((torch.full((2,), float(i)), torch.tensor(i)) for i in range(self.count))


def seen(batches: Any) -> list[int]:
    return [number for _, targets, *_ in batches for number in targets.tolist()]


def test_a_loader_without_a_length_goes_on_where_the_last_epoch_ended() -> None:
    loader = DataLoader(Numbers(10), batch_size=2)
    with pytest.raises(UsageError, match="has no length; .*steps_per_epoch"):
        LoaderBatches(loader)
    source = LoaderBatches(loader, batches=3)
    epochs = [seen(source.epoch()) for _ in range(3)]
    assert epochs == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 1], [2, 3, 4, 5, 6, 7]]
    with pytest.raises(DataError, match="gave no batch"):
        list(LoaderBatches(DataLoader(Numbers(0), batch_size=2), batches=1).epoch())


def test_a_reading_under_way_resumes_where_it_stood() -> None:
    def source() -> LoaderBatches:
        loader = DataLoader(dataset(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1))
        return LoaderBatches(loader, batches=3)

    one = source()
    seen(one.epoch())
    state = one.state()
    rest = [seen(one.epoch()) for _ in range(4)]
    other = source()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    other.load(state)
    assert torch.equal(torch.get_rng_state(), before), "a resume draws nothing"
    assert [seen(other.epoch()) for _ in range(4)] == rest
    one.load(state)
    assert [seen(one.epoch()) for _ in range(4)] == rest


def test_a_split_is_read_again_in_its_own_batches_without_a_trace() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(dataset(), batch_size=4, shuffle=True, generator=generator)
    torch.manual_seed(7)
    before = torch.get_rng_state(), generator.get_state()
    found = split(loader)
    readings = []
    for _ in range(2):
        with found.reading(None) as batches:
            readings.append([(seen([batch]), batch[2]) for batch in batches])
    assert readings[0] == readings[1] and [n for _, n in readings[0]] == [4, 4, 2]
    assert len(found) == 10 and found.sizes == (4, 4, 2) and found.parts(None) == 3
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(generator.get_state(), before[1])
    with found.reading(3) as batches:
        parted = [(seen([batch]), batch[2]) for batch in batches]
    assert [n for _, n in parted] == [3, 1, 3, 1, 2] and found.parts(3) == 5
    assert [i for ids, _ in parted for i in ids] == [i for ids, _ in readings[0] for i in ids]


def test_a_split_needs_no_length() -> None:
    found = split(DataLoader(Numbers(7), batch_size=3))
    with found.reading(None) as batches:
        assert seen(batches) == list(range(7))
    assert len(found) == 7


def test_a_batch_is_taken_apart() -> None:
    batch = {"ids": torch.ones(2, 3), "labels": torch.zeros(2)}
    inputs, targets = Unpacking(own_loss=True)(batch, "it")
    assert set(inputs) == {"ids", "labels"} and targets is batch["labels"]
    inputs, targets = Unpacking(own_loss=True)({"ids": torch.ones(2, 3)}, "it")
    assert set(inputs) == set(targets) == {"ids"}
    inputs, targets = Unpacking(lambda each: (each["ids"], each["labels"]), own_loss=True)(batch, "it")
    assert inputs is batch["ids"] and targets is batch["labels"]
    with pytest.raises(DataError, match="unpack fails on it, a dict of ids, labels: KeyError"):
        Unpacking(lambda each: each["nothing"])(batch, "it")
    with pytest.raises(DataError, match="unpack gives a Tensor for it"):
        Unpacking(lambda each: each["ids"])(batch, "it")
