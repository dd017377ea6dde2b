"""Batches: every example once, the same order for the same seed, the same place after a resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from esper.leyline import DataError, UsageError
from esper.tasks import Batches, Split, get_task
from esper.tasks.base import Streams
from esper.tasks.pipeline import seeded_streams, training_batches


def numbered(count: int) -> Split:
    targets = torch.arange(count)
    return Split(torch.stack([targets.float(), targets.float() * 10], dim=1), targets)


def jitter(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, generator=generator)


def order_of(source: Batches) -> list[int]:
    return [int(target) for _, targets in source.epoch() for target in targets]


def one_by_one(split: Split, batch_size: int, seed: int) -> list[list[int]]:
    """The obvious way: shuffle, then collect example by example."""
    batches: list[list[int]] = [[]]
    for index in torch.randperm(len(split), generator=seeded_streams(seed)["order"]).tolist():
        if len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(int(split.targets[index]))
    return batches


@given(count=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 2**31))
def test_every_example_comes_once_and_with_its_target(count: int, batch_size: int, seed: int) -> None:
    source = Batches(numbered(count), batch_size, seed)
    batches = list(source.epoch())
    assert len(batches) == len(source)
    assert [targets.tolist() for _, targets in batches] == one_by_one(numbered(count), batch_size, seed)
    for inputs, targets in batches:
        assert torch.equal(inputs[:, 1], 10.0 * targets)


def test_epochs_differ_and_seeds_differ() -> None:
    source = Batches(numbered(50), 7, 3)
    first, second = order_of(source), order_of(source)
    assert first != second
    assert order_of(Batches(numbered(50), 7, 3)) == first
    assert order_of(Batches(numbered(50), 7, 4)) != first


def test_without_shuffling_nothing_is_drawn_or_copied() -> None:
    split = numbered(10)
    source = Batches(split, 4, 0, shuffle=False)
    before = source.state()["order"]
    batches = list(source.epoch())
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    assert batches[0][0].data_ptr() == split.inputs.data_ptr()
    assert torch.equal(before, source.state()["order"])


@given(epochs=st.integers(0, 3), seed=st.integers(0, 1000))
def test_a_loaded_state_continues_bit_for_bit(epochs: int, seed: int) -> None:
    source = Batches(numbered(23), 5, seed, augment=jitter)
    for _ in range(epochs):
        list(source.epoch())
    resumed = Batches(numbered(23), 5, seed + 1, augment=jitter)
    resumed.load(source.state())
    for (one, target), (other, same) in zip(source.epoch(), resumed.epoch(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(target, same)


def test_augmentation_leaves_the_order_alone_and_keeps_off_the_global_generator() -> None:
    before = torch.get_rng_state()
    assert order_of(Batches(numbered(30), 7, 1, augment=jitter)) == order_of(Batches(numbered(30), 7, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_given_streams_are_drawn_from() -> None:
    streams = seeded_streams(9)
    assert order_of(Batches(numbered(30), 7, streams)) == order_of(Batches(numbered(30), 7, 9))
    assert not torch.equal(streams["order"].get_state(), seeded_streams(9)["order"].get_state())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="batch size is 0"):
        Batches(numbered(3), 0)
    with pytest.raises(DataError, match="lacks the random stream 'augment'"):
        Batches(numbered(3), 1).load({"order": torch.get_rng_state()})


def test_a_task_feeds_from_its_split_or_from_a_source_of_its_own() -> None:
    task = get_task("digits")
    assert isinstance(training_batches(task, 100, 0), Batches)
    drawn: list[object] = []

    def feed(batch_size: int, streams: Streams) -> Batches:
        drawn.append(streams["order"])
        return Batches(numbered(9), batch_size, streams)

    own = training_batches(replace(task, feed=feed), 4, 0)
    assert len(own) == 3
    assert len(drawn) == 1
