"""Chunks from disk: every example once in bounded memory, whatever the pace of the reading thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.leyline import DataError, UsageError
from esper.tasks import Split
from esper.tasks.streaming import MappedChunks, StreamConfig, StreamingBatches


class Pieces:
    """Numbered examples in pieces of given sizes; counts how many are read."""

    def __init__(self, sizes: list[int], delay: float = 0.0) -> None:
        self.bounds = np.concatenate([[0], np.cumsum(sizes)])
        self.examples, self.delay, self.read = int(self.bounds[-1]), delay, 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Split:
        time.sleep(self.delay)
        self.read += 1
        targets = torch.arange(int(self.bounds[index]), int(self.bounds[index + 1]))
        return Split(targets.float().unsqueeze(1) * 2, targets)


def order_of(source: StreamingBatches) -> list[int]:
    return [int(target) for _, targets in source.epoch() for target in targets]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    batch_size=st.integers(1, 12),
    buffer=st.integers(1, 20),
    shuffle=st.booleans(),
)
def test_every_example_comes_once_in_full_batches(
    sizes: list[int], batch_size: int, buffer: int, shuffle: bool
) -> None:
    source = StreamingBatches(
        Pieces(sizes), batch_size, 1, shuffle=shuffle, config=StreamConfig(buffer=buffer, ahead=1)
    )
    batches = list(source.epoch())
    assert [len(targets) for _, targets in batches[:-1]] == [batch_size] * (len(source) - 1)
    assert sorted(int(t) for _, targets in batches for t in targets) == list(range(sum(sizes)))
    assert all(torch.equal(inputs[:, 0], 2.0 * targets) for inputs, targets in batches)
    if not shuffle:
        assert torch.cat([targets for _, targets in batches]).tolist() == list(range(sum(sizes)))


def test_order_depends_on_the_seed_alone_not_on_the_pace() -> None:
    sizes, config = [10] * 8, StreamConfig(buffer=25)
    quick = StreamingBatches(Pieces(sizes), 7, 5, config=config)
    slow = StreamingBatches(Pieces(sizes, delay=0.002), 7, 5, config=config)
    assert order_of(quick) == order_of(slow)
    resumed = StreamingBatches(Pieces(sizes), 7, 0, config=config)
    resumed.load(quick.state())
    assert order_of(resumed) == order_of(quick)


def test_the_buffer_mixes_across_pieces() -> None:
    order = order_of(StreamingBatches(Pieces([20] * 10), 10, 0, config=StreamConfig(buffer=60)))
    assert len({number // 20 for number in order[:20]}) > 2


def test_an_abandoned_epoch_stops_reading() -> None:
    pieces = Pieces([4] * 50, delay=0.001)
    epoch = StreamingBatches(pieces, 4, 0, config=StreamConfig(buffer=1, ahead=1)).epoch()
    next(epoch)
    epoch.close()
    read = pieces.read
    assert read < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("esper-input")]


def test_files_are_mapped_and_read_back(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(70, dtype=np.uint8).reshape(35, 2))
    np.save(tmp_path / "y.npy", np.arange(35))
    chunks = MappedChunks(tmp_path / "x.npy", tmp_path / "y.npy", chunk=8)
    assert (len(chunks), chunks.examples) == (5, 35)
    batches = list(StreamingBatches(chunks, 10, 0).epoch())
    assert batches[0][0].dtype == torch.uint8
    assert sorted(torch.cat([targets for _, targets in batches]).tolist()) == list(range(35))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    np.save(tmp_path / "y.npy", np.zeros(4))
    with pytest.raises(DataError, match="3 examples and .* 4"):
        MappedChunks(tmp_path / "x.npy", tmp_path / "y.npy")
    (tmp_path / "z.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match="z.npy: not a readable"):
        MappedChunks(tmp_path / "z.npy", tmp_path / "y.npy")
    with pytest.raises(DataError, match="missing.npy"):
        MappedChunks(tmp_path / "missing.npy", tmp_path / "y.npy")
    with pytest.raises(UsageError, match="chunk is 0"):
        MappedChunks(tmp_path / "x.npy", tmp_path / "x.npy", chunk=0)


def test_damage_inside_a_piece_reaches_the_trainer(tmp_path: Path) -> None:
    values = np.zeros((20, 2), dtype=np.float32)
    values[13, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "y.npy", np.zeros(20))
    source = StreamingBatches(MappedChunks(tmp_path / "x.npy", tmp_path / "y.npy", chunk=5), 4)
    with pytest.raises(DataError, match="piece 2 inputs: 1 of 5 examples"):
        list(source.epoch())


def test_pieces_that_do_not_add_up_are_refused() -> None:
    pieces = Pieces([5, 5])
    pieces.examples = 11
    with pytest.raises(DataError, match="hold 10 examples together; 11 were announced"):
        list(StreamingBatches(pieces, 4).epoch())
