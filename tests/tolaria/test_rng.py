"""Random streams: stable across machines, independent of each other, restored exactly."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esper.leyline import DataError, UsageError
from esper.tasks.chance import load_process, process_state
from esper.tolaria import rng
from esper.tolaria.checkpoint import decode, encode
from esper.tolaria.rng import STREAMS, Streams, derive, seed_process, seeded


def draw(streams: Streams, name: str) -> torch.Tensor:
    return torch.rand(3, generator=streams[name])


def test_derivation_is_the_same_on_every_machine() -> None:
    assert derive(0, "order") == 1135334927541815487
    assert derive(42, "init", "r1", 3) == 509002089854173529


def test_paths_do_not_collide() -> None:
    paths = [("a", "b"), ("ab",), ("a", "b", ""), (1, 2), (12,), ("1", 2), ("1", "2"), ()]
    assert len({derive(7, *path) for path in paths}) == len(paths)


@given(st.integers(-(2**70), 2**70), st.text())
def test_seeds_fit_every_generator(seed: int, name: str) -> None:
    assert 0 <= derive(seed, name) < 2**63


def test_streams_are_reproducible_and_independent() -> None:
    first, second = Streams(7), Streams(7)
    draw(second, "augment"), draw(second, "policy")
    assert torch.equal(draw(first, "order"), draw(second, "order"))
    assert len({tuple(draw(Streams(7), name).tolist()) for name in STREAMS}) == len(STREAMS)
    assert not torch.equal(draw(Streams(7), "order"), draw(Streams(8), "order"))


def test_state_restores_every_position_into_the_same_objects() -> None:
    streams = Streams(7)
    held = streams["order"]
    draw(streams, "order")
    state = streams.state()
    expected = [draw(streams, name) for name in STREAMS]
    streams.load(state)
    assert streams["order"] is held
    assert all(torch.equal(draw(streams, name), want) for name, want in zip(STREAMS, expected, strict=True))
    other = Streams(99)
    other.load(state)
    assert all(torch.equal(draw(other, name), want) for name, want in zip(STREAMS, expected, strict=True))


def test_bad_state_is_refused_whole() -> None:
    streams = Streams(7)
    good = streams.state()
    with pytest.raises(DataError, match="differ in policy"):
        streams.load({name: state for name, state in good.items() if name != "policy"})
    with pytest.raises(DataError, match="'order' is not one"):
        streams.load(good | {"order": torch.zeros(3, dtype=torch.uint8)})
    assert all(torch.equal(streams.state()[name], good[name]) for name in STREAMS)
    with pytest.raises(UsageError, match="did you mean 'order'"):
        streams["ordr"]


def test_active_stream_feeds_global_draws_and_leaves_no_trace() -> None:
    drop, x = nn.Dropout(0.5), torch.ones(50)
    whole, split = Streams(7), Streams(7)
    before = torch.get_rng_state()
    with whole.active("train"):
        expected = [drop(x), drop(x)]
    assert torch.equal(torch.get_rng_state(), before)
    with split.active("train"):
        first = drop(x)
    torch.rand(5)
    with split.active("train"):
        second = drop(x)
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])


def test_active_stream_moves_on_even_when_the_code_fails() -> None:
    streams = Streams(7)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), streams.active("train"):
        torch.rand(1)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(streams["train"].get_state(), Streams(7)["train"].get_state())


def test_an_accelerator_draws_from_the_stream_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose generator is a number; it stands for CUDA, which is not here."""
    position = {1: torch.tensor([7])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: position[torch.device("cuda", device).index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: position.update({device: state}))
    monkeypatch.setattr(rng, "_position", lambda device, seed: torch.tensor([seed]))
    device, streams = torch.device("cuda:1"), Streams(3)
    begun = []
    for _ in range(2):
        with streams.active("train", device):
            begun.append(int(position[1]))
        assert position[1].item() == 7, "others find it as it was"
    saved = streams.state()
    with streams.active("train", device):
        third = int(position[1])
    again = Streams(99)
    again.load(saved)
    with again.active("train", device):
        assert int(position[1]) == third, "a rollback, and a resume, draw the same"
    assert len({*begun, third}) == 3
    with Streams(4).active("train", device):
        assert int(position[1]) != begun[0], "another env has another"


def test_seeded_builds_the_same_module_and_restores_all_three_generators() -> None:
    def build() -> tuple[list[float], float, float]:
        with seeded(5):
            return nn.Linear(2, 2).weight.flatten().tolist(), random.random(), float(np.random.rand())

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert build() == build()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_the_process_draws_on_from_where_it_was() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.normal(), float(torch.rand(1))]

    before = process_state()
    try:
        seed_process(3)
        first = draw()
        state = process_state()
        after = draw()
        seed_process(3)
        assert draw() == first
        written = json.dumps(encode(state["plain"]))
        load_process({**state, "plain": decode(json.loads(written))})
        assert draw() == after
    finally:
        load_process(before)
